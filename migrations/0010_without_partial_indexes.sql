-- 0010 without partial indexes: drops the indexes that only the previous claim needed.
-- The previous binary has claimed nothing since 0009.

-- Their predicates contain `status`, so each mark would write to every index.
drop index {concurrently} {outbox_pending_index};
drop index {concurrently} {outbox_waiting_index};
drop index {concurrently} {outbox_dead_index};

-- Keeps half of each page free for the second version of its rows. A mark then stays on its page and writes no index entry. A drain writes
-- 0.65 times the WAL for each event. A table that keeps its history is up to twice as large (docs/explanation/performance.md). Only new
-- pages are affected.
alter table {outbox} set (fillfactor = 50);
