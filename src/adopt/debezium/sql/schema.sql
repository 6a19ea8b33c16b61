(name text, j json) returns text language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $outbox$
-- Infers the schema of a JSON value as the router does (io.debezium.transforms.outbox.JsonSchemaData). NULL: the router leaves the member out.
-- Raises an error where the router gives the expansion up.
declare
    kind text := json_typeof(j);
    t text;
    fields text := '';
    field text;
    merged text[] := '{}';
    keys text[] := '{}';
    at integer;
    item text;
    first json;
    one record;
begin
    if kind = 'string' then
        return '{"type":"string","optional":true}';
    elsif kind = 'boolean' then
        return '{"type":"boolean","optional":true}';
    elsif kind = 'null' then
        return {null};
    elsif kind = 'number' then
        t := btrim(j::text, E' \t\n\r');
        if t ~ '^-?[0-9]{1,19}$' and t::numeric between -2147483648 and 2147483647 then
            return '{"type":"int32","optional":true}';
        elsif t ~ '^-?[0-9]{1,19}$' and t::numeric between -9223372036854775808 and 9223372036854775807 then
            return '{"type":"int64","optional":true}';
        end if;
        return '{"type":"double","optional":true}';
    elsif kind = 'object' then
        for one in select key, (array_agg(value order by n desc))[1] as value
                     from json_each(j) with ordinality e(key, value, n) group by key order by min(n) loop
            field := {schema}(coalesce(nullif(btrim(name), '') || '.', '') || one.key, one.value);
            if field is not null then
                fields := fields || ',' || left(field, -1) || ',"field":' || {json}(one.key) || '}';
            end if;
        end loop;
        return '{"type":"struct","fields":[' || substr(fields, 2) || '],"optional":true'
            || case when name is null then '' else ',"name":' || {json}(name) end || '}';
    end if;
    if json_array_length(j) = 0 then
        return null;
    end if;
    for one in select value, json_typeof(value) as kind from json_array_elements(j) e(value) where json_typeof(value) <> 'null' loop
        if first is null then
            first := one.value;
            item := case when one.kind = 'number' then {schema}(null, first) end;
        elsif one.kind <> json_typeof(first) or one.kind = 'number' and {schema}(null, one.value) <> item then
            raise exception 'an array of different types';
        end if;
    end loop;
    if json_typeof(first) is distinct from 'object' then
        item := {schema}(null, coalesce(first, 'null'));
        if item is null then
            raise exception 'an array without a type';
        end if;
    else
        -- The members of all elements, the first of a name first.
        for one in select {schema}(name, value) as of from json_array_elements(j) e(value) where json_typeof(value) = 'object' loop
            item := coalesce(item, one.of);
            if one.of <> item then
                exit;
            end if;
        end loop;
        if exists (select from json_array_elements(j) e(value) where json_typeof(value) = 'object' and {schema}(name, value) <> item) then
            for one in select f.value::text as of, f.value ->> 'field' as field
                         from json_array_elements(j) with ordinality e(value, n),
                              json_array_elements({schema}(name, e.value)::json -> 'fields') with ordinality f(value, m)
                        where json_typeof(e.value) = 'object' order by n, m loop
                at := array_position(keys, one.field);
                if at is null then
                    keys := keys || one.field;
                    merged := merged || one.of;
                elsif merged[at] like '{"type":"bytes"%' and one.of not like '{"type":"bytes"%' then
                    merged[at] := one.of;
                end if;
            end loop;
            item := '{"type":"struct","fields":[' || array_to_string(merged, ',') || '],"optional":false'
                || case when name is null then '' else ',"name":' || {json}(name) end || '}';
        end if;
    end if;
    return '{"type":"array","items":' || item || ',"optional":true}';
end
$outbox$;
