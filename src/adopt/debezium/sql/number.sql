(t text) returns text language plpgsql immutable strict parallel safe set search_path = pg_catalog, pg_temp set extra_float_digits = 1 as $outbox$
-- Prints a number of a JSON text as Kafka Connect does: whole numbers of at most 64 bits as they are, larger ones as they are (the connector
-- stops at them), all others as Java prints a double.
declare
    d text[];
    digits text;
    tiny text;
    point integer;
begin
    if t ~ '^-?[0-9]+$' then
        return case when t = '-0' then '0' else t end;
    end if;
    -- Beyond the range of a double. Powers of four digits and more would be slow to read as a number.
    if t ~ '[eE][+]?0*[1-9][0-9]{3}' or length(t) < 1000 and t !~ '[eE]-0*[1-9][0-9]{3}' and abs(t::numeric) > 1.7976931348623157e308 then
        return case when t like '-%' then '"-Infinity"' else '"Infinity"' end;
    end if;
    if t ~ '[eE]-0*[1-9][0-9]{3}' or length(t) < 1000 and abs(t::numeric) < 2.4703282292062328e-324 then
        return case when t like '-%' then '-0.0' else '0.0' end;
    end if;
    d := regexp_match(t::double precision::text, '^(-?)([0-9]+)(?:[.]([0-9]+))?(?:e([+-][0-9]+))?$');
    point := length(d[2]) + coalesce(d[4], '0')::integer;
    digits := d[2] || coalesce(d[3], '');
    point := point - length(digits) + length(ltrim(digits, '0'));
    digits := rtrim(ltrim(digits, '0'), '0');
    if length(digits) = 1 and point < -320 then
        -- Java prints at least two digits. Only with the smallest numbers the second one is not a zero.
        tiny := split_part(abs(t::double precision)::numeric::text, '.', 2);
        point := length(ltrim(tiny, '0')) - length(tiny);
        digits := rtrim(round(left(ltrim(tiny, '0'), 3)::numeric / 10)::text, '0');
    end if;
    if digits = '' then
        return d[1] || '0.0';
    elsif point between -2 and 7 then
        return d[1] || case
            when point <= 0 then '0.' || repeat('0', -point) || digits
            when length(digits) <= point then rpad(digits, point, '0') || '.0'
            else left(digits, point) || '.' || substr(digits, point + 1) end;
    end if;
    return d[1] || left(digits, 1) || '.' || coalesce(nullif(substr(digits, 2), ''), '0') || 'E' || point - 1;
end
$outbox$;
