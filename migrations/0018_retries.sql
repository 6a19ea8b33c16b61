-- 0018 retries: keeps in a consumer's database the events that are tried again later, and discards dead letters through an audited function.
-- The previous binary runs on this schema, except that its operators cannot discard dead letters. Consumers of the previous version leave
-- events that are tried again to those of this one. It refuses to start anew, as it does on any newer version.

alter table {held}
    -- The attempts that have failed.
    add column if not exists attempts        integer not null default 0,
    -- When an event with the reason `retrying` is tried again.
    add column if not exists due_at          timestamptz,
    add column if not exists first_failed_at timestamptz;

-- The owner of the inbox may always write it: the function that discards dead letters runs as this user.
create or replace function {guard}() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as {quote}
declare
    consumer_group text := case tg_op when 'DELETE' then old.consumer_group else new.consumer_group end;
begin
    if not {may_apply}(consumer_group, current_user)
        and current_user <> (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = tg_relid)
    then
        raise exception 'the user % may not act for the consumer group %', current_user, consumer_group
            using errcode = 'insufficient_privilege', hint = 'Grant the user one of the roles that the group has in the table of groups.';
    end if;
    return case tg_op when 'DELETE' then old else new end;
end
{quote};

-- Gives dead letters up, with its audit entry: marks their events as processed, so that no later delivery applies them, and deletes their
-- rows. The arrays have a group and an event in each place.
create function {discard}(
    consumer_groups text[], event_ids uuid[], filter jsonb, acted_by text, reason text, affected bigint, out marked bigint, out deleted bigint
) language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as {quote}
declare
    closed text;
begin
    if cardinality(consumer_groups) is distinct from cardinality(event_ids) then
        raise exception 'there are % groups and % events', cardinality(consumer_groups), cardinality(event_ids)
            using errcode = 'invalid_parameter_value';
    end if;
    select g into closed from unnest(consumer_groups) g where not {may_apply}(g, session_user) limit 1;
    if closed is not null then
        raise exception 'the user % may not act for the consumer group %', session_user, closed
            using errcode = 'insufficient_privilege', hint = 'Grant the user one of the roles that the group has in the table of groups.';
    end if;
    -- Marks first: a consumer that applies one of the events at this moment has marked it, and is waited for.
    insert into {processed} (consumer_group, event_id)
    select distinct g, e from unnest(consumer_groups, event_ids) given (g, e) order by 1, 2 on conflict do nothing;
    get diagnostics marked = row_count;
    delete from {held} h using unnest(consumer_groups, event_ids) given (g, e) where h.consumer_group = given.g and h.event_id = given.e;
    get diagnostics deleted = row_count;
    insert into {audit} (actor, acted_by, command, filter, reason, affected)
    values (session_user, $4, 'dlq discard', coalesce($3, '{}'), $5, coalesce($6, cardinality(event_ids)));
end
{quote};

-- Takes back that an entry of a discard could be written without a discard.
create or replace function {note}(command text, filter jsonb, acted_by text, reason text, affected bigint)
returns void language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as {quote}
begin
    if command is null or command not in ('prune', 'replay started', 'replay') then
        raise exception 'no entry is written for the command %', command using errcode = 'invalid_parameter_value';
    end if;
    insert into {audit} (actor, acted_by, command, filter, reason, affected) values (session_user, $3, $1, coalesce($2, '{}'), $4, $5);
end
{quote};

-- Gives the new right to everybody who may write audit entries, so that nobody has to run `migrate --roles` again. Roles of operators lose
-- the rights with which they could change the inbox past the audit. Users who log in keep theirs: they may be consumers as well.
revoke execute on function {discard}(text[], uuid[], jsonb, text, text, bigint) from public;
do {quote}
declare
    role record;
begin
    for role in
        select quote_ident(r.rolname) as name, r.rolcanlogin or has_table_privilege(r.oid, {source_regclass}::regclass, 'insert') as consumes
          from pg_proc p, aclexplode(p.proacl) acl join pg_roles r on r.oid = acl.grantee
         where p.oid = to_regprocedure({note_text} || '(text, jsonb, text, text, bigint)') and acl.grantee <> p.proowner
    loop
        execute format('grant execute on function %s(text[], uuid[], jsonb, text, text, bigint) to %s', {discard_text}, role.name);
        if not role.consumes then
            execute format('revoke delete on %s from %s', {held_regclass}, role.name);
            execute format('revoke insert on %s from %s', {processed_regclass}, role.name);
        end if;
    end loop;
end
{quote};

-- Gives the function to the owner of the outbox, because another user may run the migration.
do {quote}
declare
    owner text := (select pg_get_userbyid(relowner) from pg_class where oid = {outbox_regclass}::regclass);
begin
    if owner <> current_user then
        execute format('alter function %s(text[], uuid[], jsonb, text, text, bigint) owner to %I', {discard_text}, owner);
    end if;
end
{quote};
