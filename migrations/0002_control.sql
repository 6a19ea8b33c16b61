-- 0002 control: what operators do: pauses, and the book of everything that was changed by hand.
-- The previous binary: goes on publishing on it, and knows nothing of pauses: it publishes what is paused, and lets an event pass
-- others of its entity that a newer relay holds for a pause. Pause once every relay is new. No table of 0001 is changed or locked.

-- Counters that relays look at. `pauses` grows with every pause and resume, in the same transaction: a worker compares it before
-- each claim, so none claims by what was paused before. `pruned` is the highest id that retention has removed.
create table {control} (
    name  text primary key,
    value bigint not null default 0
) with (fillfactor = 50);
insert into {control} (name) values ('pauses'), ('pruned');

-- What is paused. A row whose time has passed pauses nothing; the next pause or resume removes it.
create table {pause} (
    id          bigint generated always as identity primary key,
    scope       text        not null,
    topic       text,
    entity_type text,
    entity_id   text,
    reason      text        not null,
    paused_by   text        not null,
    since       timestamptz not null default now(),
    expires_at  timestamptz,
    constraint {outbox_pause_scope} check (case scope
        when 'all' then topic is null and entity_type is null and entity_id is null
        when 'topic' then topic is not null and entity_type is null and entity_id is null
        -- Without a type: the entities of that id, whatever their type.
        when 'entity' then topic is null and entity_id is not null
        else false end)
);
create unique index {outbox_pause_once} on {pause}
    (scope, coalesce(topic, ''), coalesce(entity_type, ''), coalesce(entity_id, ''));

-- Who changed what by hand: a row for each command, in its transaction. Nobody is granted update or delete.
create table {audit} (
    id       bigint generated always as identity primary key,
    at       timestamptz not null default now(),
    actor    text        not null default session_user,
    -- Whom the actor acted for, where a person uses a shared user.
    acted_by text,
    command  text        not null,
    filter   jsonb       not null default '{}',
    reason   text,
    affected bigint      not null
);

-- The events of a command, one row each. A retried event may reach its topic after its successors: this is where `verify` learns
-- that it was allowed to.
create table {audit_row} (
    audit_id  bigint not null references {audit},
    outbox_id bigint not null,
    event_id  uuid   not null,
    action    text   not null,
    -- What the row said before.
    error     text,
    constraint {outbox_audit_row_pkey} primary key (audit_id, outbox_id),
    constraint {outbox_audit_row_action} check (action in ('retried', 'discarded', 'released'))
);
create index {outbox_audit_row_event} on {audit_row} (event_id);
