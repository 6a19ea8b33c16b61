-- Represents the mail provider, which recognises a repetition by the event's id.
create table sent_mails (
    event_id  uuid primary key,
    order_id  text not null,
    recipient text not null,
    subject   text not null
);
