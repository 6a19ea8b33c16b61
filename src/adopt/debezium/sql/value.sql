(j json, s json) returns text language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $outbox$
-- Prints a JSON value by its inferred schema, as Kafka Connect does: without spaces, without members that have no schema, and with null for
-- members that only other elements of an array have.
begin
    case json_typeof(j)
        when 'string' then
            return {json}(j #>> '{}');
        when 'number' then
            return {number}(btrim(j::text, E' \t\n\r'));
        when 'array' then
            return '[' || coalesce((
                select string_agg({value}(value, s -> 'items'), ',' order by n)
                  from json_array_elements(j) with ordinality e(value, n)), '') || ']';
        when 'object' then
            return '{' || coalesce((
                select string_agg({json}(f.value ->> 'field') || ':' || coalesce({value}(j -> (f.value ->> 'field'), f.value), 'null'), ',' order by n)
                  from json_array_elements(s -> 'fields') with ordinality f(value, n)), '') || '}';
        else
            return btrim(j::text, E' \t\n\r');
    end case;
end
$outbox$;
