create table orders (
    order_id    text primary key,
    customer    text not null,
    total_cents bigint not null,
    state       text not null default 'open' check (state in ('open', 'confirmed', 'cancelled')),
    reason      text
);
