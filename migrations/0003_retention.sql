-- 0003 retention: where archived events go, and how the tables that are pruned are vacuumed.
-- The previous binary: runs on it unchanged, and prunes nothing.

-- Published events that retention = archive has moved here. The columns are those of the outbox at this moment: whoever changes
-- a column's type there changes it here.
create table {archive} (
    like {outbox},
    archived_at timestamptz not null default now(),
    constraint {outbox_archive_pkey} primary key (id)
);

-- The outbox's own settings are those of 0001, and they suit a table that is pruned: at 10M rows 2 % and 10,000 are 210,000 dead
-- rows, seconds of marks and deletes under load. `with` there holds for its TOAST table as well.
--
-- The inbox had none. Its rows are inserted once and deleted once, by their age: the default 20 % of 10M rows would leave two
-- million dead ones, and the space of a week's events is used again only after vacuum. Takes a lock that lets reads and writes pass.
alter table {processed} set (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0.1
);
