-- 0003 retention: creates the archive of published events, and sets how the inbox is vacuumed.
-- The previous binary runs on this schema unchanged, and prunes nothing.

-- Published events that retention = archive has moved here. The columns are those of the outbox at this time. If you change the type of a
-- column in the outbox, change it here as well.
create table {archive} (
    like {outbox},
    archived_at timestamptz not null default now(),
    constraint {outbox_archive_pkey} primary key (id)
);

-- The outbox keeps the settings of 0001, which suit a table that is pruned. With 10M rows, 2 % plus 10,000 are 210,000 dead rows: seconds
-- of marks and deletes under load. The settings in `with` apply to its TOAST table as well.
--
-- The inbox had no settings. Its rows are inserted once and deleted once, by age. The default of 20 % of 10M rows would leave two million
-- dead rows, and the space of a week's events is reused only after vacuum. The statement takes a lock that allows reads and writes.
alter table {processed} set (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0.1
);
