-- 0009 lane progress: stores how far the claims of each lane have come. ADR 10.
-- The previous binary claims nothing from now on. It reads a column that is gone, reports that and waits. No event is lost and none
-- overtakes another. Start the new binary now. Applications are not affected: only lanes are locked, as long as this transaction lasts.

-- The invariant of a lane's row: every event with id <= scanned_through that snapshot sees is settled or covered by a hold. During a sweep
-- (sweep_snapshot is set), sweep_snapshot applies to ids up to swept_through, and snapshot to ids above.
alter table {lane}
    add column nonce           bigint      not null default 0,
    -- The nonce of the last batch that was committed exactly once.
    add column sealed          bigint      not null default 0,
    add column scanned_through bigint      not null default 0,
    add column snapshot        pg_snapshot not null default '3:3:',
    add column swept_through   bigint      not null default 0,
    add column sweep_snapshot  pg_snapshot,
    -- The server and the table of the progress. On another server or for another table, nothing is known.
    add column system          bigint,
    add column relation        oid;

-- Adds the session that sends a relay's heartbeat: when it is gone, the relay is gone.
-- Adds `protocol` and removes all heartbeats. The previous binary has no value for `protocol`, so its heartbeats fail. Otherwise it would
-- count as an owner of lanes.
delete from {relay};
alter table {relay} add column pid integer, add column protocol integer not null;

-- Gives the new rights to every user that could work as a relay or an operator before, so that nobody has to run `migrate --roles` again.
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

-- Drops the primary key: rows are found by their ctid, as in the table of holds. Drops `generation`, which the previous binary reads before
-- each claim.
do {quote}
begin
    execute (select pg_catalog.format('alter table %s drop constraint %I', {lane_regclass}, conname) from pg_catalog.pg_constraint
              where conrelid = {lane_regclass}::pg_catalog.regclass and contype = 'p');
end
{quote};
alter table {lane} drop column generation;
alter table {lane} replica identity full;
alter table {lane} set (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

-- Makes the rows that the previous binary held pending again: new claims hold them in the new form. Sets `due` of scheduled events.
update {outbox} set available_at = null, last_error = null
 where status = 'PENDING' and available_at > created_at and available_at = 'infinity' and last_error is not null;
update {outbox} set due = available_at
 where status = 'PENDING' and available_at > created_at and due is null;
-- Clears `due` of rows that the previous binary has settled since 0007.
update {outbox} set due = null where due is not null and status <> 'PENDING';

-- Sets the progress in one statement with one snapshot: below the first pending event that it sees, every event that it sees is settled.
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

-- The columns are those of 0004. Pending events are those above scanned_through of every lane, and those that committed late: see ADR 10.
-- `xid` has two bounds: with only one, the planner assumes that a third of the table lies behind it.
create or replace view {health} as
{health_query};
