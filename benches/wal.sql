-- Prints the WAL that one event writes: by a plain insert, by `outbox_emit`, and by `event_once` in a consumer, each in a transaction of its
-- own, with ids that follow time and with random ones. Bytes do not depend on how fast or how busy the machine is.
--
--     outbox-relay migrate && psql "$DATABASE_URL" -f benches/wal.sql
--
-- as a superuser, on an outbox for this alone: it removes all events that are there.
\set QUIET on
\set ON_ERROR_STOP on
set synchronous_commit = off;
set client_min_messages = warning;
create temporary table measured (what text, id text, bytes int);

create procedure pg_temp.measure(what text, id text, statement text) language plpgsql as $$
declare
    events constant int := 20000;
    before pg_lsn;
begin
    -- Afterwards the first change of each page writes the whole page.
    checkpoint;
    before := pg_current_wal_insert_lsn();
    for n in 1..events loop
        execute statement using n;
        commit;
    end loop;
    insert into measured values (what, id, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), before) / events);
end $$;

-- History with ids of the kind that is measured, and all its pages written once.
create procedure pg_temp.fill(id text) language plpgsql as $$
begin
    truncate event_outbox, processed_events;
    execute format('insert into event_outbox (event_id, entity_type, entity_id, event_type, payload) '
        'select %s, ''order'', n::text, ''OrderPlaced'', ''{"total": 10}'' from generate_series(1, 300000) n', id);
    insert into processed_events (consumer_group, event_id) select 'billing', event_id from event_outbox;
end $$;

call pg_temp.fill('event_outbox_new_id()');
vacuum analyze event_outbox, processed_events;
call pg_temp.measure('insert', 'time',
    $$insert into event_outbox (entity_type, entity_id, event_type, payload) values ('order', $1::text, 'OrderPlaced', '{"total": 10}')$$);
call pg_temp.measure('outbox_emit', 'time', $$select outbox_emit('order', $1::text, 'OrderPlaced', '{"total": 10}')$$);
call pg_temp.measure('event_once', 'time', $$select event_once('billing', event_outbox_new_id()) from (select $1) n$$);

call pg_temp.fill('gen_random_uuid()');
vacuum analyze event_outbox, processed_events;
call pg_temp.measure('insert', 'random',
    $$insert into event_outbox (event_id, entity_type, entity_id, event_type, payload)
      values (gen_random_uuid(), 'order', $1::text, 'OrderPlaced', '{"total": 10}')$$);
call pg_temp.measure('outbox_emit', 'random',
    $$select outbox_emit('order', $1::text, 'OrderPlaced', '{"total": 10}', event_id => gen_random_uuid())$$);
call pg_temp.measure('event_once', 'random', $$select event_once('billing', gen_random_uuid()) from (select $1) n$$);

\set QUIET off
select what, max(bytes) filter (where id = 'time') as "ids follow time", max(bytes) filter (where id = 'random') as "random ids"
from measured group by what order by what;
