-- 0005 held keys: the events that a consumer group has set aside with the key they belong to.
-- The previous binary: runs on it, the table is new; it refuses to start anew, as it does on any newer version.

-- A key is held as long as a row of it is here; the event of its lowest position is the next to be applied when the events come
-- again from the dead letter topic. Shared by all outboxes of a schema, as the inbox is.
create table if not exists {held} (
    consumer_group text        not null,
    -- The source topic, also of an event that is read from another one.
    topic          text        not null,
    key            bytea       not null,
    position       bigint      not null generated always as identity (cache 1),
    event_id       uuid        not null,
    -- Where it was read last: the same record again is a repetition, another one is a redrive.
    read_topic     text        not null,
    read_partition integer     not null,
    read_offset    bigint      not null,
    reason         text        not null,
    held_at        timestamptz not null default now(),
    primary key (consumer_group, event_id),
    unique (consumer_group, topic, key, position)
);
