create table accounts (
    customer   text primary key,
    deposited  bigint not null,
    cents      bigint not null check (cents >= 0),
    -- True if the customer's bank asks the customer before it pays.
    asks_first boolean not null
);
create table payments (
    order_id text primary key,
    customer text,
    cents    bigint not null,
    state    text not null check (state in ('waiting', 'taken', 'refused', 'cancelled', 'refunded'))
);
