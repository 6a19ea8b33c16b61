-- Puts a trap into `public` for everything that pg_catalog holds: functions, aggregates, operators, types and views of the same name. On a
-- path that begins with `public`, any name that a statement does not qualify meets a trap. Other variants match arguments of mixed types
-- better than pg_catalog does, so that they are met on the default path, too. Run it as a user with CREATE on `public`.
set search_path = pg_catalog, pg_temp;

create sequence public.trap_calls;
grant all on sequence public.trap_calls to public;

-- Each trap counts and fails. The count survives the rollback, so an error that somebody swallows is found as well.
create function public.trap(name text) returns boolean language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    begin
        perform nextval('public.trap_calls');
    exception when read_only_sql_transaction then
        null;
    end;
    raise exception 'SPRUNG %', name;
end $$;

create function public.trap(name text, value anyelement) returns anyelement language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    perform public.trap(name);
    return value;
end $$;

create procedure public.attempt(statement text) language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    execute statement;
exception when others then
    -- A pseudo-type or an internal function that cannot be imitated.
    null;
end $$;

do $$
declare
    one record;
    rows constant text := ' language plpgsql immutable as $trap$ begin perform public.trap(%L); return; end $trap$';
    -- Postgres inlines these, and evaluates the constant call when it plans: a trap is met even if a table has no row.
    value constant text := ' language sql immutable as $trap$ select public.trap(%L::pg_catalog.text, null::pg_catalog.%I) $trap$';
    polymorphic constant text := ' language plpgsql immutable as $trap$ begin perform public.trap(%L); return null; end $trap$';
    arguments text;
begin
    -- Functions, with the same parameters.
    for one in select p.oid, p.proname, p.proretset, pg_get_function_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result,
                      oidvectortypes(p.proargtypes) as types, p.proargmodes is null as plain,
                      case when p.proretset or 'o' = any (p.proargmodes) or t.typname = 'void' then rows
                           when t.typtype = 'p' then polymorphic else value end as body, t.typname
                 from pg_proc p join pg_type t on t.oid = p.prorettype
                where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind in ('f', 'w')
                  and not exists (select from pg_cast c where c.castfunc = p.oid)
                  and p.prorettype not in ('internal'::regtype, 'trigger'::regtype, 'cstring'::regtype, 'event_trigger'::regtype)
    loop
        call public.attempt(format('create function public.%I(%s) returns %s', one.proname, one.arguments, one.result)
            || format(one.body, one.proname, one.typname));
        -- Narrower types than those of pg_catalog.
        if one.plain and one.types ~ '(bigint|oid|text|"any"|anyelement|anynonarray|double precision)' then
            foreach arguments in array array[
                replace(one.types, 'bigint', 'integer'), replace(one.types, 'oid', 'regclass'), replace(one.types, 'text', 'name'),
                regexp_replace(one.types, '"any"|any\w*', 'bigint', 'g'), regexp_replace(one.types, '"any"|any\w*', 'text', 'g'),
                replace(one.types, 'double precision', 'integer')]
            loop
                if arguments <> one.types then
                    call public.attempt(format('create function public.%I(%s) returns %s', one.proname, arguments, one.result)
                        || format(one.body, one.proname, one.typname));
                end if;
            end loop;
        end if;
    end loop;
    -- Aggregates.
    create function public.trap_end(bigint) returns bigint language plpgsql as $trap$ begin perform public.trap('an aggregate'); return 0; end $trap$;
    for one in select distinct p.proname, types from pg_proc p,
                      lateral (values (oidvectortypes(p.proargtypes)), (regexp_replace(oidvectortypes(p.proargtypes), '"any"|any\w*', 'bigint', 'g')),
                               (regexp_replace(oidvectortypes(p.proargtypes), '"any"|any\w*', 'text', 'g')),
                               (regexp_replace(oidvectortypes(p.proargtypes), '"any"|any\w*', 'pg_snapshot', 'g'))) v (types)
                where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'a'
    loop
        call public.attempt(format('create function public.trap_state(%s) returns bigint language plpgsql as $trap$ begin perform public.trap(''an aggregate''); return 0; end $trap$',
            concat_ws(', ', 'bigint', nullif(one.types, ''))));
        call public.attempt(format('create aggregate public.%I(%s) (sfunc = public.trap_state, stype = bigint, finalfunc = public.trap_end)',
            one.proname, coalesce(nullif(one.types, ''), '*')));
    end loop;
    -- Operators, with the same operands and with mixed ones.
    for one in select o.oprname, l as left, r as right, o.oprresult::regtype as result,
                      (select typname from pg_type where oid = o.oprresult and typtype <> 'p') as typname,
                      format('trap_operator_%s', row_number() over ()) as name
                 from (select oprname, oprleft, oprright, oprresult from pg_operator where oprnamespace = 'pg_catalog'::regnamespace
                       union
                       select oprname, l, r, oprresult from pg_operator,
                              (values (20, 23), (23, 20), (26, 2205), (2205, 26), (19, 25), (25, 19), (18, 25), (701, 23)) mixed (l, r)
                        where oprnamespace = 'pg_catalog'::regnamespace and oprleft = oprright and oprleft in (l, r)) o,
                      lateral (select nullif(format_type(oprleft, null), '-') as l, format_type(oprright, null) as r) t
    loop
        call public.attempt(format('create function public.%I(%s) returns %s', one.name, concat_ws(', ', one.left, one.right), one.result)
            || format(case when one.typname is null then polymorphic else value end, 'operator ' || one.oprname, one.typname));
        call public.attempt(format('create operator public.%s (function = public.%I, %s rightarg = %s)', one.oprname, one.name,
            'leftarg = ' || one.left || ',', one.right));
        call public.attempt(format('create operator public.%s (function = public.%I, rightarg = %s)', one.oprname, one.name, one.right));
    end loop;
    -- Types, and views on the catalog.
    for one in select typname from pg_type where typnamespace = 'pg_catalog'::regnamespace and typtype in ('b', 'r') and typelem = 0 loop
        call public.attempt(format('create domain public.%I as pg_catalog.%1$I check (public.trap(%L))', one.typname, 'type ' || one.typname));
    end loop;
    for one in select relname from pg_class where relnamespace = 'pg_catalog'::regnamespace and relkind in ('r', 'v') loop
        call public.attempt(format('create view public.%I as select * from pg_catalog.%1$I where public.trap(%L, null::boolean)', one.relname, 'view ' || one.relname));
        call public.attempt(format('grant select on public.%I to public', one.relname));
    end loop;
end $$;
reset search_path;
