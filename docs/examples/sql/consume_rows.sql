-- psql -v ON_ERROR_STOP=1 -v event_id=UUID -v customer=c-7 -f consume_rows.sql "$DATABASE_URL"
begin;

-- One event, several rows: a parcel for each order of the customer.
insert into parcels (order_id, customer)
select id, customer from orders
 where customer = :'customer' and (select event_once('shipping', :'event_id'));

commit;
-- Only now commit the record's offset to Kafka.
