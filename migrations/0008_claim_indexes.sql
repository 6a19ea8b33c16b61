-- 0008 claim indexes: built beside the live outbox. ADR 10.
-- The previous binary: goes on publishing. `concurrently` blocks no writer; it waits for transactions that are older than it.
-- No index and no predicate names `status`, so a mark changes no index (a HOT update).

-- Finds what committed late. `id` is a key column: with `include (id)` an outage leaves entries that each claim visits.
create index {concurrently} {outbox_late} on {outbox} (xid, id, lane);

-- Scheduled events that are not settled.
create index {concurrently} {outbox_due} on {outbox} (due, id, lane) where due is not null;

-- Events with an error: DEAD ones, and refused ones that hold their entity.
create index {concurrently} {outbox_failed} on {outbox} (id) where last_error is not null;
