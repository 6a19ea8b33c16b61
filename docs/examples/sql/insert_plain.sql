-- psql -v ON_ERROR_STOP=1 -f insert_plain.sql "$DATABASE_URL"
begin;

update orders set total_cents = 3900 where id = 'o-sql';

insert into event_outbox (entity_type, entity_id, event_type, payload)
values ('order', 'o-sql', 'OrderDiscounted', '{"orderId": "o-sql", "totalCents": 3900}');

commit;
