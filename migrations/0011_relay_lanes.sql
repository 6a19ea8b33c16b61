-- 0011 relay lanes: each relay reports with its heartbeat which lanes its workers own, for `outbox-relay status`.
-- The previous binary: goes on and reports nothing; it refuses to start anew, as it does on any newer version.

-- One element for each worker that owns lanes, such as `0-7`; null while a binary without this column keeps the heartbeat.
alter table {relay} add column lanes text[];
