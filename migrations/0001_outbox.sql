-- 0001 outbox: creates the outbox, its lanes, the registry of relays, the inbox of consumers, and the SQL functions.
-- There is no previous binary: this is the first migration.
-- Names in braces are replaced by quoted, schema-qualified identifiers; {lanes} is replaced by the number of lanes.

create table {outbox} (
    -- The order of publishing. `cache 1`: with a larger cache, sessions would take blocks of ids in advance, and events of one entity would
    -- be out of order.
    id            bigint generated always as identity (cache 1),
    event_id      uuid        not null default gen_random_uuid(),
    entity_type   text        not null,
    entity_id     text,
    event_type    text        not null,
    event_version integer     not null default 1,
    payload       jsonb,
    payload_bytes bytea,
    headers       jsonb       not null default '{}',
    topic         text,
    available_at  timestamptz,
    created_at    timestamptz not null default now(),
    status        text        not null default 'PENDING',
    published_at  timestamptz,
    attempts      integer     not null default 0,
    last_error    text,
    -- The unit of ordering and of ownership. Rows without an entity have no order, so they are spread by id.
    lane          smallint    not null generated always as (
        (case when entity_id is null then id % {lanes}
              else (pg_catalog.hashtext(entity_id)::bigint & 2147483647) % {lanes} end)::smallint
    ) stored,
    constraint {outbox_pkey} primary key (id),
    constraint {outbox_status} check (status in ('PENDING', 'PUBLISHED', 'DEAD')),
    constraint {outbox_one_payload} check (payload is null or payload_bytes is null),
    constraint {outbox_headers} check (jsonb_typeof(headers) = 'object')
) with (
    -- Every event is inserted and then updated once, so a tenth of the table is soon dead. With the default of 20 %, a large table would
    -- keep millions of dead index entries that the claim has to read. Without cost delay, a vacuum of the small tail takes only seconds.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

-- The claim's index. Its first column is the expression `id + 0` and not `id`, so that the primary key matches neither the claim's
-- condition nor its order. With stale statistics the planner preferred the primary key and read every published row. `lane` is included so
-- that rows of other workers are skipped without reading the heap. Rows that wait (scheduled or held) are not in the index, so no claim
-- reads them.
create index {outbox_pending} on {outbox} ((id + 0), lane)
    where status = 'PENDING' and (available_at is null or available_at <= created_at);

-- Finds rows that wait: scheduled by the application, or held by the relay (`available_at = 'infinity'`).
create index {outbox_waiting} on {outbox} (available_at, id, lane)
    where status = 'PENDING' and available_at > created_at;

create index {outbox_dead} on {outbox} (id) where status = 'DEAD';

comment on table {outbox} is 'Transactional outbox: applications insert here in their own transactions, outbox-relay publishes to Kafka';

-- One row per lane. A worker owns a lane by the transaction-scoped advisory lock (oid of this table, lane). A session that holds or
-- releases rows of a lane increments `generation`, so that the lane's owner reads them again.
create table {lane} (
    lane       smallint primary key,
    generation bigint not null default 0
);
insert into {lane} (lane) select generate_series(0, {lanes} - 1);

-- The relays that are alive, which share the lanes evenly. Safety does not depend on this table. It is unlogged: a heartbeat writes no WAL,
-- and after a crash every relay registers again.
create unlogged table {relay} (
    id         uuid primary key,
    name       text        not null,
    version    text        not null,
    workers    integer     not null,
    started_at timestamptz not null default now(),
    seen_at    timestamptz not null default now()
) with (fillfactor = 50);

-- The inbox: which consumer group has applied which event. All outboxes of a schema share it.
create table if not exists {processed} (
    consumer_group text        not null,
    event_id       uuid        not null,
    processed_at   timestamptz not null default now(),
    primary key (consumer_group, event_id)
);

-- Function bodies are text, not SQL-standard bodies. Those would depend on the columns, and `alter column payload type text` would be
-- refused.
--
-- Inserts an event, and locks its entity until the transaction ends, so that the order of ids is the order of commits for the entity.
create function {emit}(
    entity_type   text,
    entity_id     text,
    event_type    text,
    payload       jsonb,
    headers       jsonb default '{}',
    event_version integer default 1,
    topic         text default null,
    available_at  timestamptz default null,
    payload_bytes bytea default null
) returns uuid language sql volatile as {quote}
    -- The lock before the id: whoever waits here draws its id after the one before it has committed. The transaction id is
    -- assigned before the id as well, so that a relay sees that the transaction may still commit a lower id.
    select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(entity_type || '/' || entity_id, 8317987319222330741)),
           pg_catalog.pg_current_xact_id()
     where entity_id is not null;
    insert into {outbox} (entity_type, entity_id, event_type, payload, headers, event_version, topic, available_at, payload_bytes)
    values (entity_type, entity_id, event_type, payload, coalesce(headers, '{}'), coalesce(event_version, 1), topic, available_at, payload_bytes)
    returning event_id;
{quote};

-- Returns true the first time that a group sees an event, within the caller's transaction. A second caller waits for the first to end.
create or replace function {once}(consumer_group text, event_id uuid) returns boolean language sql volatile as {quote}
    with first as (
        insert into {processed} (consumer_group, event_id) values (consumer_group, event_id)
        on conflict do nothing
        returning 1
    )
    select exists (select from first);
{quote};
