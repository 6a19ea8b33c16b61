-- 0019 fill factor: keeps a little more than half of each page free, so that the second versions of all its rows fit.
-- A relay of the previous version that runs goes on. When it is started again, it refuses this schema, like any newer one.

-- A published row is up to 16 bytes longer than a pending one ('PUBLISHED', published_at). With half of a page free, the last row of a page
-- had no place on it: 5 % of the marks wrote a whole row and an entry in each index. Only new pages are affected. A fill factor that
-- somebody has chosen stays.
do {quote}
begin
    if exists (select from pg_catalog.pg_class
                where oid = {outbox_regclass}::pg_catalog.regclass and reloptions @> array['fillfactor=50'])
    then
        execute pg_catalog.format('alter table %s set (fillfactor = 48)', {outbox_regclass}::pg_catalog.regclass);
    end if;
end
{quote};
