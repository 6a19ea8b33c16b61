-- 0012 search path: makes what the outbox runs independent of the search path of its callers, and looks for objects of other users.
-- The previous binary goes on; it refuses to start anew, as it does on any newer version.

-- The bodies look their names up with every call. Until now they did so on the caller's search path, on which a user with CREATE on a schema
-- of it can place functions and operators that match better than those of pg_catalog. No body was inlined before, so only the setting
-- itself costs: about a microsecond for each call.
alter function {emit}(text, text, text, jsonb, jsonb, integer, text, timestamptz, bytea) set search_path = pg_catalog, pg_temp;
alter function {once}(text, uuid) set search_path = pg_catalog, pg_temp;

-- Expressions that are stored keep the functions and operators that were found when they were created. Creates the view again, for that
-- reason alone.
create or replace view {health} as
{health_query};

-- Sets the defaults again that call a function of another user, and refuses to go on if something else does.
do {quote}
declare
    one record;
    theirs text;
begin
    for one in {foreign} loop
        if one.trusted then
            continue;
        elsif one.field in ('at', 'since', 'seen_at', 'held_at', 'started_at', 'created_at', 'applied_at', 'archived_at', 'processed_at') then
            execute format('alter table %s alter column %I set default now()', one.relation, one.field);
        elsif one.field = 'xid' then
            execute format('alter table %s alter column xid set default pg_current_xact_id()', one.relation);
        elsif one.field = 'event_id' then
            execute format('alter table %s alter column event_id set default gen_random_uuid()', one.relation);
        else
            theirs := concat_ws('; ', theirs, format('%s use(s) %s of the user %I', one.part, one.thing, one.owner));
        end if;
    end loop;
    if theirs is not null then
        raise exception 'the outbox depends on objects of other users: %', theirs
            using errcode = 'OR206',
                  hint = 'The entry OR-2206 of the runbook says how to replace them.';
    end if;
end
{quote};
