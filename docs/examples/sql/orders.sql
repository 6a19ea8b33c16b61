-- The application's own tables, for the examples beside this file.
create table if not exists orders (
    id          text primary key,
    customer    text   not null,
    total_cents bigint not null
);

-- What a consumer of order events keeps.
create table if not exists parcels (
    order_id text primary key,
    customer text not null
);
