-- 0004 health: creates a view with the facts of `outbox-relay status` as one row, for any monitor that can run a query.
-- The previous binary runs on this schema: nothing that it uses has changed.

-- The view is cheap on a table of any size: each count reads a partial index and stops at a million (then it means "at least"). So the cost
-- depends on the backlog and not on the size of the table. `order by` uses the index's own columns, so that no statistics can make the
-- planner scan the table. A user who may read the view needs no right on the tables. Only members of pg_read_all_stats (or pg_monitor) see
-- the sessions of other users. For others, oldest_transaction_seconds covers only their own sessions.
create view {health} as
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
       lanes.lanes,
       pg_catalog.pg_stat_get_live_tuples({outbox_regclass}::regclass) as live_tuples,
       pg_catalog.pg_stat_get_dead_tuples({outbox_regclass}::regclass) as dead_tuples,
       greatest(pg_catalog.pg_stat_get_last_autovacuum_time({outbox_regclass}::regclass),
                pg_catalog.pg_stat_get_last_vacuum_time({outbox_regclass}::regclass)) as last_vacuum_at,
       transactions.oldest_seconds as oldest_transaction_seconds
  from (select count(*) as events
          from (select from {outbox}
                 where status = 'PENDING' and (available_at is null or available_at <= created_at)
                 order by (id + 0) limit 1000000) counted) pending
  left join lateral (select created_at from {outbox}
         where status = 'PENDING' and (available_at is null or available_at <= created_at)
         order by (id + 0) limit 1) oldest on true
 cross join (select count(*) as events
          from (select from {outbox}
                 where status = 'PENDING' and available_at > created_at
                   and (available_at < 'infinity' or last_error is null)
                 order by available_at, id limit 1000000) counted) scheduled
 cross join (select count(*) as events, min(created_at) as oldest
          from (select created_at from {outbox}
                 where status = 'PENDING' and available_at > created_at
                   and available_at = 'infinity' and last_error is not null
                 order by available_at, id limit 1000000) counted) held
 cross join (select count(*) as events
          from (select from {outbox} where status = 'DEAD' limit 1000000) counted) dead
 -- The longest heartbeat interval is 10 s. A relay that has missed three heartbeats counts as gone.
 cross join (select count(*) filter (where seen_at > now() - interval '30 seconds') as alive,
               coalesce(sum(workers) filter (where seen_at > now() - interval '30 seconds'), 0)::bigint as workers,
               extract(epoch from clock_timestamp() - max(seen_at))::float8 as silent_seconds
          from {relay}) relays
 cross join (select count(*) as lanes from {lane}) lanes
 cross join (select max(extract(epoch from clock_timestamp() - xact_start))::float8 as oldest_seconds
          from pg_catalog.pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and backend_type <> 'autovacuum worker') transactions;

comment on view {health} is 'What outbox-relay status shows, as one row; counts stop at 1,000,000';
