-- psql -v ON_ERROR_STOP=1 -f insert.sql "$DATABASE_URL"
begin;

insert into orders (id, customer, total_cents) values ('o-sql', 'c-7', 4200);

select outbox_emit(
    'order', 'o-sql', 'OrderPlaced',
    '{"orderId": "o-sql", "customer": "c-7", "totalCents": 4200}',
    '{"correlation-id": "req-81f2"}'
);

commit;
