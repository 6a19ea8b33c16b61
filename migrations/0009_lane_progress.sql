-- 0009 lane progress: how far the claims of each lane have come. ADR 10.
-- The previous binary: claims nothing from here on. It reads a column that is gone, reports that and waits; no event is lost and none
-- overtakes. Start the new binary now. Applications are not touched: only lanes are locked, for as long as this transaction lasts.

-- What a row says of its lane: every event with id <= scanned_through that snapshot sees is settled or covered by a hold. While a sweep
-- is under way (sweep_snapshot is set), sweep_snapshot counts up to swept_through and snapshot counts above.
alter table {lane}
    add column nonce           bigint      not null default 0,
    -- The nonce of the last batch that was committed exactly once.
    add column sealed          bigint      not null default 0,
    add column scanned_through bigint      not null default 0,
    add column snapshot        pg_snapshot not null default '3:3:',
    add column swept_through   bigint      not null default 0,
    add column sweep_snapshot  pg_snapshot,
    -- Where the progress was written: another server or another table means that nothing is known.
    add column system          bigint,
    add column relation        oid;

-- The session that keeps a relay's heartbeat: when it is gone, so is the relay.
-- The previous binary goes on with its heartbeat, and would be counted as the owner of lanes: it has no value for `protocol`.
delete from {relay};
alter table {relay} add column pid integer, add column protocol integer not null;

-- Whoever could work as a relay or an operator before can do so now, without running `migrate --roles` again.
do {quote}
declare
    seen pg_catalog.regclass;
    grantee text;
    is_relay boolean;
begin
    for grantee, is_relay in
        select case acl.grantee when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(acl.grantee)) end,
               exists (select from pg_catalog.pg_attribute a, pg_catalog.aclexplode(a.attacl) own
                        where a.attrelid = {outbox_regclass}::pg_catalog.regclass and a.attname = 'published_at'
                          and own.grantee = acl.grantee and own.privilege_type = 'UPDATE')
          from pg_catalog.pg_attribute lane, pg_catalog.aclexplode(lane.attacl) acl
         where lane.attrelid = {lane_regclass}::pg_catalog.regclass and lane.attname = 'generation'
           and acl.privilege_type = 'UPDATE'
    loop
        if is_relay then
            execute pg_catalog.format('grant update (nonce, sealed, scanned_through, snapshot, swept_through, sweep_snapshot, '
                'system, relation) on %s to %s', {lane_regclass}, grantee);
            execute pg_catalog.format('grant update (due) on %s to %s', {outbox_regclass}, grantee);
            execute pg_catalog.format('grant select, insert, update, delete on %s to %s', {hold_regclass}, grantee);
        else
            execute pg_catalog.format('grant select on %s to %s', {hold_regclass}, grantee);
        end if;
    end loop;
    for grantee in
        select case acl.grantee when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(acl.grantee)) end
          from pg_catalog.pg_class lane, pg_catalog.aclexplode(lane.relacl) acl
         where lane.oid = {lane_regclass}::pg_catalog.regclass and acl.privilege_type = 'SELECT' and acl.grantee <> lane.relowner
    loop
        execute pg_catalog.format('grant select on %s to %s', {hold_regclass}, grantee);
    end loop;
    -- Column by column, as the roles of monitors and operators have it.
    for seen, grantee in
        select status.attrelid::pg_catalog.regclass,
               case acl.grantee when 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(acl.grantee)) end
          from pg_catalog.pg_attribute status, pg_catalog.aclexplode(status.attacl) acl
         where status.attrelid in ({outbox_regclass}::pg_catalog.regclass, {archive_regclass}::pg_catalog.regclass)
           and status.attname = 'status' and acl.privilege_type = 'SELECT'
    loop
        execute pg_catalog.format('grant select (xid, due) on %s to %s', seen, grantee);
    end loop;
end
{quote};

-- No key, and found by place: see the table of holds. The previous binary reads `generation` before each claim.
do {quote}
begin
    execute (select pg_catalog.format('alter table %s drop constraint %I', {lane_regclass}, conname) from pg_catalog.pg_constraint
              where conrelid = {lane_regclass}::pg_catalog.regclass and contype = 'p');
end
{quote};
alter table {lane} drop column generation;
alter table {lane} replica identity full;
alter table {lane} set (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

-- What the previous binary held goes through the claims again, which hold it in the new form. Scheduled events get their column.
update {outbox} set available_at = null, last_error = null
 where status = 'PENDING' and available_at > created_at and available_at = 'infinity' and last_error is not null;
update {outbox} set due = available_at
 where status = 'PENDING' and available_at > created_at and due is null;
-- Those that the previous binary has settled since 0007.
update {outbox} set due = null where due is not null and status <> 'PENDING';

-- One statement and one snapshot: below the first pending event that it sees, everything that it sees is settled.
update {lane}
   set scanned_through = first.id - 1,
       snapshot = pg_catalog.pg_current_snapshot(),
       system = (select system_identifier from pg_catalog.pg_control_system()),
       relation = {outbox_regclass}::pg_catalog.regclass
  from (select coalesce(
            (select id from {outbox}
              where status = 'PENDING' and (available_at is null or available_at <= created_at) order by (id + 0) limit 1),
            (select id from {outbox} order by id desc limit 1),
            1) as id) first;

-- The columns are those of 0004. Pending are the events above what every lane has scanned, and those that committed late: see ADR 10.
-- Two bounds of xid: of one alone the planner believes that a third of the table lies behind it.
create or replace view {health} as
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
 -- The longest heartbeat interval is 10 s; a relay that has missed three is gone.
 cross join (select count(*) filter (where seen_at > now() - interval '30 seconds') as alive,
               coalesce(sum(workers) filter (where seen_at > now() - interval '30 seconds'), 0)::bigint as workers,
               extract(epoch from clock_timestamp() - max(seen_at))::float8 as silent_seconds
          from {relay}) relays
 cross join (select max(extract(epoch from clock_timestamp() - xact_start))::float8 as oldest_seconds
          from pg_catalog.pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and backend_type <> 'autovacuum worker') transactions;
