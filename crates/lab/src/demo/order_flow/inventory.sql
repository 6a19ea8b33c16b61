create table stock (
    sku       text primary key,
    delivered bigint not null,
    on_shelf  bigint not null check (on_shelf >= 0)
);
create table reservations (
    order_id text not null,
    sku      text not null references stock,
    quantity bigint not null check (quantity > 0),
    primary key (order_id, sku)
);
