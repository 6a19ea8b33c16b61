-- 0002 control: creates the tables for operators: pauses, and the audit of every change made by hand.
-- The previous binary continues to publish. It does not know pauses: it publishes paused events, and lets an event overtake others of its
-- entity that a newer relay holds for a pause. Pause only after every relay is new. No table of 0001 is changed or locked.

-- Counters that relays read. `pauses` is incremented with every pause and resume, in the same transaction. A worker compares it before each
-- claim, so no claim uses outdated pauses. `pruned` is the highest id that retention has removed.
create table {control} (
    name  text primary key,
    value bigint not null default 0
) with (fillfactor = 50);
insert into {control} (name) values ('pauses'), ('pruned');

-- The pauses. An expired row pauses nothing; the next pause or resume removes it.
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
        -- Without a type: every entity with that id, whatever its type.
        when 'entity' then topic is null and entity_id is not null
        else false end)
);
create unique index {outbox_pause_once} on {pause}
    (scope, coalesce(topic, ''), coalesce(entity_type, ''), coalesce(entity_id, ''));

-- The record of changes by hand: one row for each command, written in the command's transaction. No role may update or delete rows.
create table {audit} (
    id       bigint generated always as identity primary key,
    at       timestamptz not null default now(),
    actor    text        not null default session_user,
    -- The person the actor acted for, if several people share a user.
    acted_by text,
    command  text        not null,
    filter   jsonb       not null default '{}',
    reason   text,
    affected bigint      not null
);

-- The events of a command, one row each. A retried event may reach its topic after its successors; `verify` reads here that this was
-- allowed.
create table {audit_row} (
    audit_id  bigint not null references {audit},
    outbox_id bigint not null,
    event_id  uuid   not null,
    action    text   not null,
    -- The row's error before the command.
    error     text,
    constraint {outbox_audit_row_pkey} primary key (audit_id, outbox_id),
    constraint {outbox_audit_row_action} check (action in ('retried', 'discarded', 'released'))
);
create index {outbox_audit_row_event} on {audit_row} (event_id);
