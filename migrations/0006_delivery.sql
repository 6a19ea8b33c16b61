-- 0006 delivery: creates the table that says which worker publishes a lane exactly once.
-- The previous binary runs on this schema, and publishes at least once. It does not know this table, and would take a lane without checking
-- the batch that its last owner left open. Switch to exactly_once only after every relay is new. No table of 0001 is changed or locked.

-- The worker that publishes a lane in Kafka transactions, until it releases the lane. Null: only batches of at-least-once can be in doubt.
-- `epoch` grows with every change of the owner. `opened`: the worker may have sent something. Before it is set, the progress in Kafka may
-- still be that of another worker. The protocol is in src/relay/exactly_once.rs.
create table {delivery} (
    lane             smallint primary key,
    epoch            bigint   not null default 0,
    transactional_id text,
    opened           boolean  not null default false
) with (fillfactor = 50);
insert into {delivery} (lane) select lane from {lane};

-- The identity of this outbox: two databases must not share a consumer group on one cluster. 60 bits are always positive.
insert into {control} (name, value)
select 'identity', ('x' || substr(md5(gen_random_uuid()::text), 1, 15))::bit(60)::bigint;
