-- 0014 event id index: makes the ids of events unique, while the outbox is in use.
-- The previous binary goes on; it refuses to start anew, as it does on any newer version.

-- A mark changes no indexed column, so it stays a HOT update. If two events have one id already, nothing is changed and the migration says
-- how to find them.
create unique index {concurrently} {outbox_event} on {outbox} (event_id);
