-- 0010 without partial indexes: what only the previous claim needed.
-- The previous binary claims nothing since 0009.

-- Their predicates name `status`, which makes each mark write into every index.
drop index {concurrently} {outbox_pending_index};
drop index {concurrently} {outbox_waiting_index};
drop index {concurrently} {outbox_dead_index};

-- Half of each page stays free for the second version of its rows, so that a mark stays on its page and writes no index entry:
-- 0.65 times the WAL for each event of a drain; a table that keeps its history is up to twice as large (docs/explanation/performance.md). New pages only.
alter table {outbox} set (fillfactor = 50);
