-- psql -v ON_ERROR_STOP=1 -v event_id=UUID -v order_id=o-sql -v customer=c-7 -f consume.sql "$DATABASE_URL"
begin;

-- :event_id is the record's header `event-id`. A second delivery inserts nothing.
insert into parcels (order_id, customer)
select :'order_id', :'customer'
 where event_once('shipping', :'event_id');

commit;
-- Only now commit the record's offset to Kafka.
