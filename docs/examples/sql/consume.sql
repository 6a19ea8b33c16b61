-- psql -v ON_ERROR_STOP=1 -v event_id=UUID -v order_id=o-sql -v customer=c-7 -f consume.sql "$DATABASE_URL"
begin;

-- :event_id is the record's header `event-id`. A second delivery inserts nothing. The `select` around `event_once` calls it
-- once for the statement; without it each row would call it, and only the first of several rows would be inserted.
insert into parcels (order_id, customer)
select :'order_id', :'customer'
 where (select event_once('shipping', :'event_id'));

commit;
-- Only now commit the record's offset to Kafka.
