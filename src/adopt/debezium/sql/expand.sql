(t text, s text) returns text[] language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $outbox$
-- Expands a payload as table.expand.json.payload does. Returns its schema and its text. What the router cannot expand stays a JSON string
-- with the schema s of its column.
declare
    inferred text;
begin
    if t is null or t !~ '^[{[]' then
        return array[s, {json}(t)];
    end if;
    begin
        inferred := {schema}({payload}, t::json);
        if inferred is null then
            return array['null', {json}(t)];
        end if;
        return array[inferred, {value}(t::json, inferred::json)];
    exception when others then
        return array[s, {json}(t)];
    end;
end
$outbox$;
