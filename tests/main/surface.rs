//! Compares what a migrated outbox consists of with .ci/surface/sql.txt, which is part of the public surface: docs/releasing.md.
//! `OUTBOX_RELAY_BLESS=1` writes the file.

use std::path::Path;

use anyhow::ensure;
use libtest_mimic::Trial;

use lab::{TestDatabase, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            the_recorded_sql_objects_are_those_of_a_migrated_outbox;
    }
}

/// Lists columns with their types, functions with their parameters and results, and triggers. Indexes are listed in docs/reference/sql.md.
const OBJECTS: &str = "\
select line from (
  select case relkind when 'v' then 'view column ' else 'table column ' end || relname || '.' || attname || ': '
         || pg_catalog.format_type(atttypid, atttypmod) || case when attnotnull then ' not null' else '' end
         || case when attgenerated <> '' then ' generated' when atthasdef then ' has default' else '' end
    from pg_catalog.pg_attribute join pg_catalog.pg_class on attrelid = pg_class.oid
   where relnamespace = 'public'::regnamespace and relkind in ('r', 'v') and attnum > 0 and not attisdropped
  union all
  select 'function ' || proname || '(' || pg_catalog.pg_get_function_identity_arguments(oid) || '): ('
         || pg_catalog.pg_get_function_arguments(oid) || ') returns ' || pg_catalog.pg_get_function_result(oid)
    from pg_catalog.pg_proc where pronamespace = 'public'::regnamespace
  union all
  select 'trigger ' || relname || '.' || tgname || ': ' || pg_catalog.substring(
           pg_catalog.pg_get_triggerdef(pg_trigger.oid), '(?:BEFORE|AFTER).* ON ') || relname
    from pg_catalog.pg_trigger join pg_catalog.pg_class on tgrelid = pg_class.oid
   where relnamespace = 'public'::regnamespace and not tgisinternal
) objects (line) order by line collate \"C\"";

async fn the_recorded_sql_objects_are_those_of_a_migrated_outbox(database: TestDatabase) -> anyhow::Result<()> {
    let objects: Vec<String> = sqlx::query_scalar(OBJECTS).fetch_all(&mut database.connect().await?).await?;
    let now = objects.join("\n") + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/surface/sql.txt");
    if std::env::var_os("OUTBOX_RELAY_BLESS").is_some() {
        std::fs::write(&path, &now)?;
    }
    let recorded = std::fs::read_to_string(&path)?;
    let only = |left: &str, right: &str| -> Vec<String> {
        left.lines().filter(|line| !right.lines().any(|other| other == *line)).map(str::to_owned).collect()
    };
    let (gone, new) = (only(&recorded, &now), only(&now, &recorded));
    let hint = "OUTBOX_RELAY_BLESS=1 with this test writes .ci/surface/sql.txt; then run `just surface`";
    ensure!(recorded == now, "the outbox has changed ({hint})\ngone: {gone:#?}\nnew: {new:#?}");
    Ok(())
}
