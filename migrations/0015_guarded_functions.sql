-- 0015 guarded functions: operators change rows through audited functions, the entity's lock has a secret key, ids of events follow time,
-- and `outbox_emit` refuses what the relay would refuse, takes an event's id or a dedupe key, and has a sibling for many events.
-- The previous binary goes on; it refuses to start anew, as it does on any newer version. Its commands that change rows are refused.

-- What only the outbox's owner and its functions read. Nobody is granted anything on it.
create table {secret} (
    -- The seed of the hash that gives an entity its advisory lock.
    entity_seed bigint not null,
    -- The seed of the event ids that follow from dedupe keys.
    dedupe_seed uuid   not null
);
insert into {secret} (entity_seed, dedupe_seed)
select ('x' || substr(md5(gen_random_uuid()::text || gen_random_uuid()::text), 1, 16))::bit(64)::bigint, gen_random_uuid();

-- The row that is locked while the inbox is pruned. The row `pruned` is locked while the outbox is.
insert into {control} (name) values ('inbox');

-- Columns of the application's own that the archive does not have, as JSON. Those that it has are copied.
alter table {archive} add column other_columns jsonb;

-- Returns the id of a new event: a UUID of version 7, so that ids follow time and indexes on them grow at their right edge. The body is
-- parsed once, on the path of this migration, so that it can be inlined.
do {quote}
declare
    body text := case when current_setting('server_version_num')::integer >= 180000 then 'uuidv7()' else
        'encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) placing '
        'substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6), 52, 1), 53, 1), ''hex'')::uuid' end;
begin
    execute format('create function %s() returns uuid language sql volatile parallel safe return %s', {new_id_text}, body);
end
{quote};
alter table {outbox} alter column event_id set default {new_id}();

-- Locks the entity that `outbox_emit` has named, until the transaction ends. A statement's trigger runs before the first id is drawn:
-- whoever waits here draws its id after the one before it has committed. A trigger runs for those who may insert, and cannot be called.
-- The setting is that of the function before version 15, so that calls which overlap this migration lock the entity as well.
create function {lock_entity}() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp as {quote}
declare
    entity    text := current_setting('outbox_relay.entity', true);
    lock_key  bigint := hashtextextended(entity, (select s.entity_seed from {secret} s));
    most      integer;
    entities  integer;
    patience  text;
    longest   float8;
    -- Longer than `deadlock_timeout`, which begins anew with each attempt.
    attempt   float8;
    began     timestamptz := clock_timestamp();
    holder    record;
begin
    entities := coalesce(nullif(current_setting('outbox_relay.entities', true), ''), '0')::integer + 1;
    most := current_setting('max_locks_per_transaction')::integer
        * (current_setting('max_connections')::integer + current_setting('max_prepared_transactions')::integer) / 2;
    -- All sessions share the server's lock table. Entities that come again are counted again, and have one lock.
    if entities % 256 = 0 and entities > most
        and (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) > most - 256
    then
        raise exception 'too many entities in one transaction: each takes a lock, and % of them are half of the lock table', most
            using errcode = 'program_limit_exceeded',
                  hint = 'Commit more often, or lock the entities'' own rows and insert into the outbox instead.';
    end if;
    perform set_config('outbox_relay.entities', entities::text, true), set_config('outbox_relay.locked', entity, true);
    if pg_try_advisory_xact_lock(lock_key) then
        return null;
    end if;

    -- Another transaction writes events of the entity. Looks at the holder if that lasts: any session can take an advisory lock whose key
    -- it has seen in pg_locks. Whoever writes events holds a lock on the outbox as well.
    patience := current_setting('lock_timeout');
    longest := extract(epoch from patience::interval);
    attempt := 10 + extract(epoch from current_setting('deadlock_timeout')::interval);
    loop
        begin
            perform set_config('lock_timeout', ceil(1000 * case when longest > 0
                then least(attempt, greatest(longest - extract(epoch from clock_timestamp() - began), 0.001)) else attempt end)::text, true);
            perform pg_advisory_xact_lock(lock_key);
            exit;
        exception when lock_not_available then
            select l.pid, a.usename, a.application_name,
                   exists (select from pg_locks t where t.virtualtransaction = l.virtualtransaction and t.locktype = 'relation' and t.granted
                             and t.database = l.database and t.relation = {outbox_regclass}::regclass
                             and t.mode not in ('AccessShareLock', 'RowShareLock')) as writes
              into holder
              from pg_locks l left join pg_stat_activity a using (pid)
             where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and (l.classid::bigint << 32) | l.objid::bigint = lock_key
               and l.database = (select oid from pg_database where datname = current_database());
            if not holder.writes then
                raise exception 'the entity % is locked by the session % of the user %, which writes no events', entity, holder.pid, holder.usename
                    using errcode = 'lock_not_available', detail = format('Its application is %s.', holder.application_name),
                          hint = format('select pg_terminate_backend(%s);', holder.pid);
            elsif longest > 0 and extract(epoch from clock_timestamp() - began) >= longest then
                raise exception 'canceling statement due to lock timeout: the session % writes events of the entity %', holder.pid, entity
                    using errcode = 'lock_not_available';
            end if;
            raise warning 'the entity % is locked by the session % of the user %', entity, holder.pid, holder.usename;
        end;
    end loop;
    perform set_config('lock_timeout', patience, true);
    return null;
end
{quote};
create trigger {outbox_entity_lock} before insert on {outbox} for each statement
    when (current_setting('outbox_relay.entity', true) is distinct from current_setting('outbox_relay.locked', true))
    execute function {lock_entity}();

-- Wakes a relay that sleeps. A relay without work holds these locks exclusively, and sleeps. A writer takes one of them shared until its
-- transaction ends, and notifies only if it cannot: while events flow, nobody does. All names are qualified, because a search path of the
-- function's own would cost more than the rest.
create function {wake_up}() returns void language plpgsql volatile as {quote}
begin
    -- Postgres refuses to prepare a transaction that has notified, so nothing notifies where transactions can be prepared.
    if pg_catalog.current_setting('max_prepared_transactions') operator(pg_catalog.=) '0'
        and not pg_catalog.pg_try_advisory_xact_lock_shared({wake_up_class}, pg_catalog.mod(pg_catalog.pg_backend_pid(), 8)) then
        perform pg_catalog.pg_notify({wake_up_channel}, '');
    end if;
end
{quote};

-- The same as a trigger, for events that are inserted without `outbox_emit`: `migrate --wake-up-trigger` sets it.
create function {wake_up_on_insert}() returns trigger language plpgsql volatile as {quote}
begin
    perform {wake_up}();
    return null;
end
{quote};

-- Returns the id of every event with that dedupe key. It cannot be guessed, and differs between outboxes.
create function {dedupe_id}(dedupe_key text) returns uuid language sql stable security definer
    set search_path = pg_catalog, pg_temp as {quote}
    -- A UUID of version 8, "custom".
    select encode(set_byte(set_byte(hash, 6, (get_byte(hash, 6) & 15) | 128), 8, (get_byte(hash, 8) & 63) | 128), 'hex')::uuid
      from (select substr(sha256(convert_to(s.dedupe_seed || dedupe_key, 'UTF8')), 1, 16) as hash from {secret} s) hashed;
{quote};

-- Drops the function that the next one replaces, and keeps its rights for it.
select set_config('outbox_relay.rights', coalesce(p.proacl, acldefault('f', p.proowner))::text, true) from pg_proc p
 where p.oid = to_regprocedure({emit_text} || '(text,text,text,jsonb,jsonb,integer,text,timestamptz,bytea)');
drop function {emit}(text, text, text, jsonb, jsonb, integer, text, timestamptz, bytea);

-- Inserts an event, and locks its entity until the transaction ends, so that the order of ids is the order of commits for the entity.
--
-- With a `dedupe_key`, a later call with the same key writes nothing and returns the first id, as long as the first event is in the table.
-- A call with a key that another transaction has just used waits for its end.
--
-- Two transactions that emit events of entities a and b in different orders can deadlock, as with any two locks: emit them in one order,
-- or with the function for many events, which locks the entities in one order.
create function {emit}(
    entity_type   text,
    entity_id     text,
    event_type    text,
    payload       jsonb,
    headers       jsonb default '{}',
    event_version integer default 1,
    topic         text default null,
    available_at  timestamptz default null,
    payload_bytes bytea default null,
    event_id      uuid default null,
    dedupe_key    text default null
) returns uuid language plpgsql volatile set search_path = pg_catalog, pg_temp as {quote}
declare
    emitted uuid;
    wrong   text;
begin
    if coalesce(entity_type, '') = '' then
        raise exception 'the entity_type of an event is empty'
            using errcode = 'invalid_parameter_value', hint = 'Name the kind of entity, such as ''order'': it chooses the topic.';
    elsif coalesce(event_type, '') = '' then
        raise exception 'the event_type of an event is empty'
            using errcode = 'invalid_parameter_value', hint = 'Name what has happened, such as ''OrderPlaced''.';
    elsif event_id is not null and dedupe_key is not null then
        raise exception 'an event has an event_id and a dedupe_key'
            using errcode = 'invalid_parameter_value', hint = 'Give one of them: the id of the event follows from its dedupe key.';
    end if;
    headers := coalesce(headers, '{}');
    if headers <> '{}' then
        if jsonb_typeof(headers) <> 'object' then
            raise exception 'the headers of an event are of the type %, not an object', jsonb_typeof(headers)
                using errcode = 'invalid_parameter_value', hint = 'Give an object of strings, such as ''{"correlation-id": "req-81f2"}''.';
        end if;
        select format('%I is of the type %s', h.key, jsonb_typeof(h.value)) into wrong
          from jsonb_each(headers) h where jsonb_typeof(h.value) <> 'string' limit 1;
        if wrong is not null then
            raise exception 'a header of an event is not a string: %', wrong
                using errcode = 'invalid_parameter_value', hint = 'Write numbers as strings: ''{"tries": "1"}''. Leave out headers that have no value.';
        end if;
    end if;
    -- The trigger locks the entity that is named here.
    if entity_id is not null then
        perform set_config('outbox_relay.entity', entity_type || '/' || entity_id, true);
    end if;
    if dedupe_key is not null then
        emitted := {dedupe_id}(dedupe_key);
        -- The usual repetition needs neither a lock nor a transaction id.
        if exists (select from {outbox} o where o.event_id = emitted) then
            return emitted;
        end if;
        perform {wake_up}();
        insert into {outbox} (event_id, entity_type, entity_id, event_type, payload, headers, event_version, topic, available_at, payload_bytes)
        values (emitted, entity_type, entity_id, event_type, payload, headers, coalesce(event_version, 1), topic, available_at, payload_bytes)
        on conflict do nothing;
        return emitted;
    end if;
    perform {wake_up}();
    insert into {outbox} (event_id, entity_type, entity_id, event_type, payload, headers, event_version, topic, available_at, payload_bytes)
    values (coalesce(event_id, {new_id}()), entity_type, entity_id, event_type, payload, headers, coalesce(event_version, 1), topic,
            available_at, payload_bytes)
    returning {outbox}.event_id into emitted;
    return emitted;
end
{quote};

-- The same for entities with a number as their id.
create function {emit}(
    entity_type   text,
    entity_id     bigint,
    event_type    text,
    payload       jsonb,
    headers       jsonb default '{}',
    event_version integer default 1,
    topic         text default null,
    available_at  timestamptz default null,
    payload_bytes bytea default null,
    event_id      uuid default null,
    dedupe_key    text default null
) returns uuid language sql volatile set search_path = pg_catalog, pg_temp as {quote}
    select {emit}(entity_type, entity_id::text, event_type, payload, headers, event_version, topic, available_at, payload_bytes, event_id,
                  dedupe_key);
{quote};

-- Inserts the events of a JSON array in its order, and returns their ids in the same order. Locks all entities first, in one order for all
-- callers, so that two calls cannot deadlock. The members of an event are the parameters of the function for one event; `payload_bytes` is
-- a string as Postgres prints it, and the payload `null` is a tombstone.
create function {emit_many}(events jsonb) returns setof uuid language plpgsql volatile set search_path = pg_catalog, pg_temp as {quote}
declare
    event   jsonb;
    entity  text;
    unknown text;
begin
    if jsonb_typeof(events) is distinct from 'array' then
        raise exception 'the events are not a JSON array' using errcode = 'invalid_parameter_value';
    end if;
    select coalesce(string_agg(distinct quote_ident(member), ', '), 'something that is not an object') into unknown
      from jsonb_array_elements(events) e
      left join lateral jsonb_object_keys(case jsonb_typeof(e) when 'object' then e end) member on true
     where jsonb_typeof(e) <> 'object'
        or member not in ('entity_type', 'entity_id', 'event_type', 'payload', 'headers', 'event_version', 'topic', 'available_at',
                          'payload_bytes', 'event_id', 'dedupe_key')
    having count(*) > 0;
    if unknown is not null then
        raise exception 'an event has what no event has: %', unknown
            using errcode = 'invalid_parameter_value', hint = 'The members of an event are the parameters of the function for one event.';
    end if;
    for entity in
        select distinct (e ->> 'entity_type') || '/' || (e ->> 'entity_id') collate "C" as entity
          from jsonb_array_elements(events) e where e ->> 'entity_id' is not null order by entity
    loop
        perform set_config('outbox_relay.entity', entity, true);
        -- Inserts nothing; its trigger locks the entity.
        insert into {outbox} (entity_type, event_type) select '', '' where false;
    end loop;
    for event in select e from jsonb_array_elements(events) with ordinality listed (e, place) order by place loop
        return next {emit}(
            event ->> 'entity_type', event ->> 'entity_id', event ->> 'event_type', nullif(event -> 'payload', 'null'),
            nullif(event -> 'headers', 'null'), (event ->> 'event_version')::integer, event ->> 'topic',
            (event ->> 'available_at')::timestamptz, (event ->> 'payload_bytes')::bytea, (event ->> 'event_id')::uuid,
            event ->> 'dedupe_key');
    end loop;
end
{quote};

-- Retries or discards events, with its audit entry. Takes ids, locks the rows in ascending order, and changes those that still wait for a
-- decision: DEAD events, and refused events that hold their entity.
create function {decide}(
    decision text, ids bigint[], filter jsonb, acted_by text, reason text, out changed bigint, out released bigint
) language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as {quote}
begin
    if decision is null or decision not in ('retry', 'discard') then
        raise exception 'a decision is retry or discard, not %', decision using errcode = 'invalid_parameter_value';
    end if;
    with chosen as materialized (
        select o.id, o.event_id, o.status, o.last_error from {outbox} o
         where o.id = any (ids) and o.last_error is not null
           and (o.status = 'DEAD' and (decision = 'retry' or not starts_with(o.last_error, 'discarded: '))
                or o.status = 'PENDING' and exists (select from {hold} h where h.head_id = o.id and h.why = 'poison'))
         order by o.id for update of o),
    updated as (
        update {outbox} o
           set status = case decision when 'retry' then 'PENDING' else 'DEAD' end, available_at = null,
               last_error = case decision when 'discard' then 'discarded: ' || o.last_error end
          from chosen c where o.id = c.id returning o.id),
    entry as (
        insert into {audit} (actor, acted_by, command, filter, reason, affected)
        select session_user, $4, 'dead ' || $1, coalesce($3, '{}'), $5, (select count(*) from updated) returning id),
    noted as (
        insert into {audit_row} (audit_id, outbox_id, event_id, action, error)
        select e.id, c.id, c.event_id,
               -- Only events that were DEAD may reach their topic after their successors, so `verify` has to tell them apart.
               case when decision = 'discard' then 'discarded' when c.status = 'PENDING' then 'released' else 'retried' end, c.last_error
          from entry e, chosen c)
    select (select count(*) from updated),
           coalesce((select sum(greatest(h.events - 1, 0)) from chosen c join {hold} h on h.head_id = c.id and h.why = 'poison'
                      where c.status = 'PENDING'), 0)
      into changed, released;
    -- Makes workers reload their holds.
    update {control} c set value = c.value + 1 where c.name = 'pauses';
    perform {wake_up}();
end
{quote};

-- Begins a pause with its audit entry, or gives the one of the same scope a new reason and end.
create function {begin_pause}(
    scope text, topic text, entity_type text, entity_id text, lasts_s float8, acted_by text, reason text
) returns void language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as {quote}
begin
    delete from {pause} p
     where p.expires_at <= clock_timestamp()
        or p.scope = $1 and p.topic is not distinct from $2 and p.entity_type is not distinct from $3
           and p.entity_id is not distinct from $4;
    insert into {pause} (scope, topic, entity_type, entity_id, reason, paused_by, expires_at)
    values ($1, $2, $3, $4, coalesce($7, 'no reason given'), session_user || coalesce(' for ' || $6, ''),
            clock_timestamp() + make_interval(secs => $5));
    update {control} c set value = c.value + 1 where c.name = 'pauses';
    insert into {audit} (actor, acted_by, command, filter, reason, affected)
    values (session_user, $6, 'pause', jsonb_strip_nulls(jsonb_build_object(
        'scope', $1, 'topic', $2, 'entity_type', $3, 'entity_id', $4, 'for_s', $5)), $7, 1);
end
{quote};

-- Ends the pause of exactly this scope, with its audit entry. Returns false if none was in force.
create function {end_pause}(scope text, topic text, entity_type text, entity_id text, acted_by text, reason text)
returns boolean language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as {quote}
declare
    ended boolean;
begin
    with gone as (
        delete from {pause} p
         where p.scope = $1 and p.topic is not distinct from $2 and p.entity_type is not distinct from $3
           and p.entity_id is not distinct from $4
        returning p.expires_at)
    select coalesce(bool_or(g.expires_at is null or g.expires_at > clock_timestamp()), false) into ended from gone g;
    if ended then
        update {control} c set value = c.value + 1 where c.name = 'pauses';
        insert into {audit} (actor, acted_by, command, filter, reason, affected)
        values (session_user, $5, 'resume', jsonb_strip_nulls(jsonb_build_object(
            'scope', $1, 'topic', $2, 'entity_type', $3, 'entity_id', $4)), $6, 1);
    end if;
    return ended;
end
{quote};

-- Writes the audit entry of a command whose work is not one transaction: it says what its actor states. Entries of all other commands come
-- from the functions that do the work.
create function {note}(command text, filter jsonb, acted_by text, reason text, affected bigint)
returns void language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as {quote}
begin
    if command is null or command not in ('prune', 'replay started', 'replay', 'dlq discard') then
        raise exception 'no entry is written for the command %', command using errcode = 'invalid_parameter_value';
    end if;
    insert into {audit} (actor, acted_by, command, filter, reason, affected) values (session_user, $3, $1, coalesce($2, '{}'), $4, $5);
end
{quote};

-- The sessions of the server without their queries, which contain payloads. `migrate --roles` gives the function to a role that may see
-- the sessions of others; until then it shows what the outbox's owner may see.
create function {sessions}() returns table (
    pid integer, datname name, usename name, application_name text, state text, xact_start timestamptz, query_start timestamptz,
    state_change timestamptz, backend_xid xid, backend_xmin xid, backend_type text
) language sql stable security definer set search_path = pg_catalog, pg_temp as {quote}
    select a.pid, a.datname, a.usename, a.application_name, a.state, a.xact_start, a.query_start, a.state_change, a.backend_xid,
           a.backend_xmin, a.backend_type from pg_stat_activity a;
{quote};

-- The age of the oldest transaction of this database, for the view: everybody who reads the view calls this.
create function {oldest_transaction}() returns float8 language sql stable security definer set search_path = pg_catalog, pg_temp as {quote}
    select max(extract(epoch from clock_timestamp() - a.xact_start))::float8 from pg_stat_activity a
     where a.datname = current_database() and a.pid <> pg_backend_pid() and a.backend_type <> 'autovacuum worker';
{quote};
create or replace view {health} as
select h.pending, h.pending_is_at_least, h.oldest_pending_seconds, h.scheduled, h.held, h.oldest_held_seconds, h.dead, h.relays_alive,
       h.workers_alive, h.last_heartbeat_seconds, h.lanes, h.live_tuples, h.dead_tuples, h.last_vacuum_at,
       greatest(h.oldest_transaction_seconds, {oldest_transaction}()) as oldest_transaction_seconds
  from ({health_query}) h;

-- The roles that may write the inbox for a consumer group. A group without a row is open to all who may write the inbox. The group `*`
-- stands for every group: relays that prune the inbox. All outboxes of a schema share it, like the inbox.
create table if not exists {group} (
    consumer_group text not null,
    role           name not null,
    primary key (consumer_group, role)
);
do {quote}
declare
    theirs text;
begin
    select string_agg(p.oid::regprocedure::text, ', ') into theirs from pg_proc p join pg_roles r on r.oid = p.proowner
     where p.oid in (to_regprocedure({may_apply_text} || '(text,name)'), to_regprocedure({guard_text} || '()'))
       and not r.rolsuper and r.rolname <> current_user
       and p.proowner <> (select relowner from pg_class where oid = {processed_regclass}::regclass);
    if theirs is not null then
        raise exception 'objects of other users are in the way of the outbox: %', theirs
            using errcode = 'OR206', hint = 'Drop them, or make the schema''s owner own them.';
    end if;
end
{quote};
create or replace function {may_apply}(consumer_group text, role name) returns boolean language sql stable security definer
    set search_path = pg_catalog, pg_temp as {quote}
    select not exists (select from {group} g where g.consumer_group = $1)
        or exists (select from {group} g join pg_roles r on r.rolname = g.role
                    where g.consumer_group in ($1, '*') and pg_has_role($2, r.oid, 'usage'));
{quote};
create or replace function {guard}() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as {quote}
declare
    consumer_group text := case tg_op when 'DELETE' then old.consumer_group else new.consumer_group end;
begin
    if not {may_apply}(consumer_group, current_user) then
        raise exception 'the user % may not act for the consumer group %', current_user, consumer_group
            using errcode = 'insufficient_privilege', hint = 'Grant the user one of the roles that the group has in the table of groups.';
    end if;
    return case tg_op when 'DELETE' then old else new end;
end
{quote};
create or replace trigger {guard_name} before insert or update or delete on {processed} for each row execute function {guard}();
create or replace trigger {guard_name} before insert or update or delete on {held} for each row execute function {guard}();

-- Gives the new rights to everybody who had the old ones, so that nobody has to run `migrate --roles` again. Operators lose the rights with
-- which they could change rows past the audit, unless they are relays as well.
revoke execute on function
    {decide}(text, bigint[], jsonb, text, text), {begin_pause}(text, text, text, text, float8, text, text),
    {end_pause}(text, text, text, text, text, text), {note}(text, jsonb, text, text, bigint), {sessions}() from public;
do {quote}
declare
    outbox  regclass := {outbox_regclass};
    grantee text;
    is_relay boolean;
    old_acl aclitem[] := current_setting('outbox_relay.rights')::aclitem[];
begin
    for grantee, is_relay in
        select quote_ident(pg_get_userbyid(acl.grantee)),
               exists (select from pg_attribute a, aclexplode(a.attacl) own
                        where a.attrelid = outbox and a.attname = 'published_at' and own.grantee = acl.grantee
                          and own.privilege_type = 'UPDATE')
          from pg_class c, aclexplode(c.relacl) acl
         where c.oid = {audit_regclass}::regclass and acl.privilege_type = 'INSERT' and acl.grantee not in (0, c.relowner)
    loop
        execute format('grant execute on function %s(text, bigint[], jsonb, text, text), %s(text, text, text, text, float8, text, text), '
            '%s(text, text, text, text, text, text), %s(text, jsonb, text, text, bigint), %s() to %s',
            {decide_text}, {begin_pause_text}, {end_pause_text}, {note_text}, {sessions_text}, grantee);
        execute format('revoke insert on %s, %s from %s', {audit_regclass}, {audit_row_regclass}, grantee);
        execute format('revoke insert, delete on %s from %s', {pause_regclass}, grantee);
        if not is_relay then
            execute format('revoke update (status, available_at, last_error) on %s from %s', outbox, grantee);
            execute format('revoke update (value) on %s from %s', {control_regclass}, grantee);
        end if;
    end loop;
    -- Those who may read the states of events may read the lock of a row and the sessions, without payloads.
    for grantee in
        select case acl.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(acl.grantee)) end
          from pg_attribute a, aclexplode(a.attacl) acl
         where a.attrelid = outbox and a.attname = 'status' and acl.privilege_type = 'SELECT'
    loop
        execute format('grant select (xmax) on %s to %s', outbox, grantee);
    end loop;
    -- The function for one event has the rights of the one that it replaces.
    if not exists (select from aclexplode(old_acl) acl where acl.grantee = 0) then
        execute format('revoke execute on function %s(text, text, text, jsonb, jsonb, integer, text, timestamptz, bytea, uuid, text), '
            '%s(text, bigint, text, jsonb, jsonb, integer, text, timestamptz, bytea, uuid, text), %s(jsonb) from public',
            {emit_text}, {emit_text}, {emit_many_text});
    end if;
    for grantee in select quote_ident(pg_get_userbyid(acl.grantee)) from aclexplode(old_acl) acl where acl.grantee <> 0 loop
        execute format('grant execute on function %s(text, text, text, jsonb, jsonb, integer, text, timestamptz, bytea, uuid, text), '
            '%s(text, bigint, text, jsonb, jsonb, integer, text, timestamptz, bytea, uuid, text), %s(jsonb) to %s',
            {emit_text}, {emit_text}, {emit_many_text}, grantee);
    end loop;
end
{quote};

-- Gives the new objects to the owner of the outbox, because another user may run the migration.
do {quote}
declare
    owner text := (select pg_get_userbyid(relowner) from pg_class where oid = {outbox_regclass}::regclass);
    part  text;
begin
    if owner = current_user then
        return;
    end if;
    execute format('alter table %s owner to %I', {secret_regclass}, owner);
    foreach part in array array[
        {new_id_text} || '()', {lock_entity_text} || '()', {dedupe_id_text} || '(text)',
        {emit_text} || '(text, text, text, jsonb, jsonb, integer, text, timestamptz, bytea, uuid, text)',
        {emit_text} || '(text, bigint, text, jsonb, jsonb, integer, text, timestamptz, bytea, uuid, text)', {emit_many_text} || '(jsonb)',
        {decide_text} || '(text, bigint[], jsonb, text, text)', {begin_pause_text} || '(text, text, text, text, float8, text, text)',
        {end_pause_text} || '(text, text, text, text, text, text)', {note_text} || '(text, jsonb, text, text, bigint)',
        {sessions_text} || '()', {oldest_transaction_text} || '()'
    ] loop
        execute format('alter function %s owner to %I', part, owner);
    end loop;
end
{quote};
