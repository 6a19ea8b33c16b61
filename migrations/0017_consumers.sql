-- 0017 consumers: keeps the records that wait behind a held key, and the topics that each consumer group reads.
-- The previous binary runs on this schema. Its consumers go on, and set successors aside without their records; those are redriven by hand
-- as before. It refuses to start anew, as it does on any newer version.

-- Which topics a group reads, and where its dead letters are. Consumers of the runtime write this when they start; for other consumers you
-- insert the rows. Rows of the inbox are pruned only when none of these topics can deliver their events again.
create table if not exists {source} (
    consumer_group text        not null,
    topic          text        not null,
    dead_letters   boolean     not null default false,
    since          timestamptz not null default now(),
    primary key (consumer_group, topic)
);

-- The record of a parked event, from which it is applied when the events before it are. Null in rows of older consumers.
alter table {held}
    add column if not exists value         bytea,
    add column if not exists header_names  text[],
    add column if not exists header_values bytea[],
    -- Milliseconds since 1970.
    add column if not exists written_at    bigint,
    -- The error of a head that failed.
    add column if not exists error         text;

-- The unique constraint of 0005 had the key itself in its index, and an index entry may have 2,704 bytes at most. An event with a longer key
-- could not be set aside.
do {quote}
declare
    old name;
begin
    for old in select conname from pg_constraint where conrelid = {held_regclass}::regclass and contype = 'u' loop
        execute format('alter table %s drop constraint %I', {held_regclass}::regclass, old);
    end loop;
end
{quote};
create index if not exists {held_key} on {held} (consumer_group, topic, sha256(key), position);
