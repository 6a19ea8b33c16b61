-- 0008 claim indexes: builds the indexes of claims while the outbox is in use. ADR 10.
-- The previous binary continues to publish. `concurrently` blocks no writer; it waits for older transactions. No index and no predicate
-- contains `status`, so a mark changes no index (a HOT update).

-- Finds rows that committed late. `id` is a key column: with `include (id)`, an outage would leave entries that each claim has to read.
create index {concurrently} {outbox_late} on {outbox} (xid, id, lane);

-- Finds scheduled events that are not settled.
create index {concurrently} {outbox_due} on {outbox} (due, id, lane) where due is not null;

-- Finds events with an error: DEAD events, and refused events that hold their entity.
create index {concurrently} {outbox_failed} on {outbox} (id) where last_error is not null;
