-- What the consumers beside this file keep. No key on the order: were an event applied twice, it would show.
create table if not exists invoices (
    order_id    text   not null,
    total_cents bigint not null
);
