-- 0013 partition holds: a hold may name a partition of a topic, so that a partition that takes no records stops only its own events.
-- The previous binary: goes on. It cannot read a hold of a partition, so it publishes nothing of that lane until a new binary has it.

alter table {hold}
    add column partition  integer,
    -- The number of partitions of the topic when the hold began. With the event's key it decides whether the hold covers the event.
    add column partitions integer,
    drop constraint if exists {outbox_hold_kind};
alter table {hold}
    add constraint {outbox_hold_kind} check (kind in ('row', 'entity', 'topic')
        or kind = 'partition' and topic is not null and partition >= 0 and partitions > partition);
