-- 0007 claims: adds the columns that a claim by snapshots (ADR 10) needs: the transaction that made a row pending, and the time it is due.
-- The previous binary continues to publish. No table is rewritten: `alter table` waits for open writers and then ends at once.

-- Changes the archive first, so that the outbox is locked for the shortest time.
alter table {archive}
    add column xid xid8,
    add column due timestamptz;

-- The default is one value for all existing rows: the transaction of this migration.
alter table {outbox}
    add column xid xid8        not null default pg_catalog.pg_current_xact_id(),
    -- Set while a scheduled event waits (`available_at > created_at`). Null for all other events, and after the event is settled.
    add column due timestamptz;

-- Maintains the one invariant that claims depend on: `xid` is the local transaction that made the row pending in its lane. A claim finds a
-- row that committed late only by this column.
create function {stamp}() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as {quote}
begin
    if tg_op = 'INSERT' then
        new.due := case when new.available_at > new.created_at then new.available_at end;
    elsif new.id is distinct from old.id then
        raise exception 'the id of an event cannot change: it is its place in the order'
            using errcode = 'integrity_constraint_violation', hint = 'Insert a new event instead.';
    elsif new.available_at is distinct from old.available_at then
        new.due := case when new.available_at > new.created_at then new.available_at end;
    elsif new.status = 'PENDING' and old.status <> 'PENDING' then
        new.due := case when new.available_at > pg_catalog.now() then new.available_at end;
    end if;
    -- An event that is discarded by hand carries a reason, like one that the relay gave up.
    if new.status = 'DEAD' and new.last_error is null then
        new.last_error := 'set to DEAD by hand';
    end if;
    if tg_op = 'INSERT' or new.status = 'PENDING' then
        new.xid := pg_catalog.pg_current_xact_id();
    end if;
    return new;
end
{quote};

-- The conditions are evaluated without calling the function, so it costs nothing for an ordinary insert and for the relay's own marks.
create trigger {outbox_stamp_insert} before insert on {outbox} for each row
    when (new.xid is distinct from pg_catalog.pg_current_xact_id() or new.available_at is not null or new.due is not null
          or new.status = 'DEAD')
    execute function {stamp}();
create trigger {outbox_stamp_update} before update on {outbox} for each row
    when (new.id is distinct from old.id
          or new.status = 'DEAD' and new.last_error is null
          or new.status = 'PENDING' and (
                 old.status <> 'PENDING'
                 or new.xid is distinct from old.xid
                 or new.due is distinct from old.due
                 or new.available_at is distinct from old.available_at
                 or new.entity_id is distinct from old.entity_id
                 or new.entity_type is distinct from old.entity_type
                 or new.event_type is distinct from old.event_type
                 or new.topic is distinct from old.topic))
    execute function {stamp}();
-- Enables the triggers for rows of logical replication as well: their `xid` belongs to another server.
alter table {outbox} enable always trigger {outbox_stamp_insert};
alter table {outbox} enable always trigger {outbox_stamp_update};

-- The holds, which keep events from being published although claims have passed them. There is one row for a lane and an entity, a topic or
-- an event, however many events wait. The lane's owner writes it in the transaction that passes the events. There is no index: while an old
-- snapshot keeps vacuum back, the check of a key would read every old version of its row.
create table {hold} (
    id          bigint generated always as identity,
    lane        smallint    not null,
    kind        text        not null,
    topic       text,
    -- Null with `kind = 'entity'`: every entity with that id, whatever its type.
    entity_type text,
    entity_id   text,
    -- locked: another session has locked the row. poison: an event was refused. topic: the topic cannot be written. paused: by an operator.
    why         text        not null,
    reason      text        not null,
    -- No event of this hold with a lower id is pending.
    from_id     bigint      not null,
    -- The locked row, or the event that was refused.
    head_id     bigint,
    -- The number of events that claims have passed.
    events      bigint      not null default 0,
    since       timestamptz not null default now(),
    constraint {outbox_hold_kind} check (kind in ('row', 'entity', 'topic')),
    constraint {outbox_hold_why} check (why in ('locked', 'poison', 'topic', 'paused'))
) with (fillfactor = 50);
-- Sets a replica identity: with a publication for all tables, Postgres would refuse every update of a table without a key.
alter table {hold} replica identity full;

-- Gives the table of holds and the function to the owner of the outbox, because another user may run the migration.
do {quote}
declare
    owner text := (select pg_catalog.pg_get_userbyid(relowner) from pg_catalog.pg_class where oid = {outbox_regclass}::pg_catalog.regclass);
begin
    if owner <> current_user then
        execute pg_catalog.format('grant select, insert, update, delete on %s to %I', {hold_regclass}, owner);
        execute pg_catalog.format('alter table %s owner to %I', {hold_regclass}, owner);
        execute pg_catalog.format('alter function %s() owner to %I', {stamp_text}, owner);
    end if;
exception when insufficient_privilege then
    raise warning 'the owner of % stays %: %', {hold_regclass}, current_user, sqlerrm;
    execute pg_catalog.format('grant select, insert, update, delete on %s to %I', {hold_regclass}, owner);
end
{quote};

-- Replaces the function by one with a limit. All sessions share the server's lock table; if one transaction fills it, the others fail.
create or replace function {emit}(
    entity_type   text,
    entity_id     text,
    event_type    text,
    payload       jsonb,
    headers       jsonb default '{}',
    event_version integer default 1,
    topic         text default null,
    available_at  timestamptz default null,
    payload_bytes bytea default null
) returns uuid language plpgsql volatile as {quote}
declare
    entity   text := entity_type || '/' || entity_id;
    most     integer;
    entities integer;
    emitted  uuid;
begin
    if entity is distinct from pg_catalog.current_setting('outbox_relay.entity', true) and entity_id is not null then
        entities := coalesce(nullif(pg_catalog.current_setting('outbox_relay.entities', true), ''), '0')::integer + 1;
        most := pg_catalog.current_setting('max_locks_per_transaction')::integer
            * (pg_catalog.current_setting('max_connections')::integer
               + pg_catalog.current_setting('max_prepared_transactions')::integer) / 2;
        -- Entities that come again are counted again, and have one lock.
        if entities % 256 = 0 and entities > most
            and (select count(*) from pg_catalog.pg_locks where locktype = 'advisory' and pid = pg_catalog.pg_backend_pid()) > most - 256
        then
            raise exception 'too many entities in one transaction: each takes a lock, and % of them are half of the lock table', most
                using errcode = 'program_limit_exceeded',
                      hint = 'Commit more often, or lock the entities'' own rows and insert into the outbox instead.';
        end if;
        perform pg_catalog.set_config('outbox_relay.entities', entities::text, true),
                pg_catalog.set_config('outbox_relay.entity', entity, true);
    end if;
    -- The lock before the id: whoever waits here draws its id after the one before it has committed.
    if entity_id is not null then
        perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(entity, 8317987319222330741));
    end if;
    insert into {outbox} (entity_type, entity_id, event_type, payload, headers, event_version, topic, available_at, payload_bytes)
    values (entity_type, entity_id, event_type, payload, coalesce(headers, '{}'), coalesce(event_version, 1), topic, available_at, payload_bytes)
    returning event_id into emitted;
    return emitted;
end
{quote};
