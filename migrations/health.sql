-- health: the query of the view of 0009, which 0012 creates again.
with progress as materialized (
    select min(scanned_through) as scanned_through,
           (array_agg(snapshot order by pg_catalog.pg_snapshot_xmax(snapshot), pg_catalog.pg_snapshot_xmin(snapshot)))[1] as snapshot,
           count(*) as lanes
      from {lane})
select pending.events as pending,
       pending.events >= 1000000 as pending_is_at_least,
       coalesce(extract(epoch from clock_timestamp() - oldest.created_at), 0)::float8 as oldest_pending_seconds,
       scheduled.events as scheduled,
       held.events as held,
       coalesce(extract(epoch from clock_timestamp() - held.oldest), 0)::float8 as oldest_held_seconds,
       dead.events as dead,
       relays.alive as relays_alive,
       relays.workers as workers_alive,
       relays.silent_seconds as last_heartbeat_seconds,
       (select lanes from progress) as lanes,
       pg_catalog.pg_stat_get_live_tuples({outbox_regclass}::regclass) as live_tuples,
       pg_catalog.pg_stat_get_dead_tuples({outbox_regclass}::regclass) as dead_tuples,
       greatest(pg_catalog.pg_stat_get_last_autovacuum_time({outbox_regclass}::regclass),
                pg_catalog.pg_stat_get_last_vacuum_time({outbox_regclass}::regclass)) as last_vacuum_at,
       transactions.oldest_seconds as oldest_transaction_seconds
  from (select count(*) as events from (
          (select from {outbox}
            where status = 'PENDING' and due is null and id > (select scanned_through from progress) order by id limit 1000000)
          union all
          (select from (select id from {outbox} where status = 'PENDING' and due is null
              and xid >= (select pg_catalog.pg_snapshot_xmax(snapshot) from progress)
              and xid < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) order by xid limit 1000000) late
            where id <= (select scanned_through from progress))
          union all
          (select from (select id from {outbox} where status = 'PENDING' and due is null
              and xid = any (array(select pg_catalog.pg_snapshot_xip(snapshot) from progress)) order by xid limit 1000000) late
            where id <= (select scanned_through from progress))) counted) pending
  left join lateral (select created_at from (
          (select id, created_at from {outbox}
            where status = 'PENDING' and due is null and id > (select scanned_through from progress) order by id limit 1)
          union all
          (select id, created_at from (select id, created_at from {outbox} where status = 'PENDING' and due is null
              and xid >= (select pg_catalog.pg_snapshot_xmax(snapshot) from progress)
              and xid < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) order by xid limit 10000) late
            where id <= (select scanned_through from progress))
          union all
          (select id, created_at from (select id, created_at from {outbox} where status = 'PENDING' and due is null
              and xid = any (array(select pg_catalog.pg_snapshot_xip(snapshot) from progress)) order by xid limit 10000) late
            where id <= (select scanned_through from progress))) first
         order by id limit 1) oldest on true
 cross join (select count(*) as events
          from (select from {outbox} where status = 'PENDING' and due is not null order by due, id limit 1000000) counted) scheduled
 cross join (select coalesce(sum(events), 0)::bigint as events, min(since) as oldest from {hold}) held
 cross join (select count(*) as events
          from (select from {outbox} where status = 'DEAD' and last_error is not null limit 1000000) counted) dead
 -- The longest heartbeat interval is 10 s. A relay that has missed three heartbeats counts as gone.
 cross join (select count(*) filter (where seen_at > now() - interval '30 seconds') as alive,
               coalesce(sum(workers) filter (where seen_at > now() - interval '30 seconds'), 0)::bigint as workers,
               extract(epoch from clock_timestamp() - max(seen_at))::float8 as silent_seconds
          from {relay}) relays
 cross join (select max(extract(epoch from clock_timestamp() - xact_start))::float8 as oldest_seconds
          from pg_catalog.pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and backend_type <> 'autovacuum worker') transactions
