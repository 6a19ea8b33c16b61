-- 0006 delivery: which worker publishes a lane exactly once.
-- The previous binary: runs on it, at least once. It knows nothing of this table and would take a lane without asking what its last
-- owner left open: switch to exactly_once only when every relay is new. No table of 0001 is changed or locked.

-- The worker that publishes a lane in Kafka transactions, until it lets the lane go in good order; null: nothing can be in doubt but
-- what at-least-once leaves in doubt. `epoch` grows with every change of hands. `opened`: the worker may have sent something; before, its
-- progress in Kafka may still be another's. The protocol is in src/relay/exactly_once.rs.
create table {delivery} (
    lane             smallint primary key,
    epoch            bigint   not null default 0,
    transactional_id text,
    opened           boolean  not null default false
) with (fillfactor = 50);
insert into {delivery} (lane) select lane from {lane};

-- Of this outbox alone, so that those of two databases do not share a group on one cluster. 60 bits: always positive.
insert into {control} (name, value)
select 'identity', ('x' || substr(md5(gen_random_uuid()::text), 1, 15))::bit(60)::bigint;
