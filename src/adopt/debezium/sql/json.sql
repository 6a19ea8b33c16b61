(t text) returns text language plpgsql immutable strict parallel safe set search_path = pg_catalog, pg_temp as $outbox$
-- Prints a text as a JSON string, as Kafka Connect does. Postgres prints the same, except for some control characters and for characters
-- beyond U+FFFF, which Connect escapes as two surrogates.
begin
    if t !~ '[\u000b\u000e\u000f\u001a-\u001f\U00010000-\U0010ffff]' then
        return to_json(t)::text;
    end if;
    return '"' || (
        select string_agg(
            case when part !~ '^[\u000b\u000e\u000f\u001a-\u001f\U00010000-\U0010ffff]'
                    then substr(to_json(part)::text, 2, length(to_json(part)::text) - 2)
                 when ascii(part) < 32 then '\u00' || upper(lpad(to_hex(ascii(part)), 2, '0'))
                 else '\u' || upper(to_hex(55296 + ((ascii(part) - 65536) >> 10)))
                   || '\u' || upper(to_hex(56320 + ((ascii(part) - 65536) & 1023)))
            end, '' order by n)
          from regexp_matches(t, '[^\u000b\u000e\u000f\u001a-\u001f\U00010000-\U0010ffff]+|.', 'g') with ordinality m(parts, n),
               lateral (select parts[1]) p(part)) || '"';
end
$outbox$;
