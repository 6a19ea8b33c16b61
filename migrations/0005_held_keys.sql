-- 0005 held keys: creates the table of events that a consumer group has set aside with their key.
-- The previous binary runs on this schema, because the table is new. It refuses to start again, as it does on any newer version.

-- A key is held as long as it has a row here. The event with the lowest position is the next to be applied when the events come again from
-- the dead letter topic. All outboxes of a schema share the table, like the inbox.
create table if not exists {held} (
    consumer_group text        not null,
    -- The source topic, even for an event that was read from another topic.
    topic          text        not null,
    key            bytea       not null,
    position       bigint      not null generated always as identity (cache 1),
    event_id       uuid        not null,
    -- The place where the event was last read. The same record again is a repetition; another record is a redrive.
    read_topic     text        not null,
    read_partition integer     not null,
    read_offset    bigint      not null,
    reason         text        not null,
    held_at        timestamptz not null default now(),
    primary key (consumer_group, event_id),
    unique (consumer_group, topic, key, position)
);
