-- 0016 relay settings: each relay reports with its heartbeat the settings that shape its records, so that relays that differ are found.
-- The previous binary: goes on and reports nothing; it refuses to start anew, as it does on any newer version.

-- A JSON object with the name and the value of each such setting, none of them secret; null while a binary without this column keeps the
-- heartbeat.
alter table {relay} add column settings pg_catalog.text;
