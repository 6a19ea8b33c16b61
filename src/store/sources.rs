//! The topics that the groups of the inbox read, as far as the database knows them: consumers of the runtime record theirs, and for others an
//! operator inserts them.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row};

use crate::store::read_only::read;
use event_outbox::names::{Names, literal};

/// A recorded topic; true stands for dead letters.
pub(crate) type Source = (String, bool);

/// Returns the groups that have rows in the inbox, each with its recorded topics. Empty if this user may not read the inbox.
///
/// # Errors
/// Any database error.
pub(crate) async fn sources(
    conn: &mut PgConnection,
    names: &Names,
) -> Result<BTreeMap<String, Vec<Source>>, sqlx::Error> {
    let (processed, source) = (names.processed(), names.source());
    // An outbox of an older schema version has no table of sources.
    let readable = format!(
        "select coalesce(has_table_privilege(to_regclass({}), 'select'), false), \
         coalesce(has_table_privilege(to_regclass({}), 'select'), false)",
        literal(&processed),
        literal(&source)
    );
    let row = read(conn, &readable).await?.pop().ok_or(sqlx::Error::RowNotFound)?;
    if !row.try_get::<bool, _>(0)? {
        return Ok(BTreeMap::new());
    }
    let recorded = match row.try_get::<bool, _>(1)? {
        true => format!("left join {source} s on s.consumer_group = g.name"),
        false => "left join (select null::text as topic, null::boolean as dead_letters) s on true".to_owned(),
    };
    // Goes from group to group by the primary key, because the table may have millions of rows of each.
    let query = format!(
        "with recursive g(name) as (\
           (select consumer_group from {processed} order by consumer_group limit 1) union all \
           select (select p.consumer_group from {processed} p where p.consumer_group > g.name order by p.consumer_group limit 1) \
           from g where g.name is not null) \
         select g.name, s.topic, s.dead_letters from g {recorded} where g.name is not null order by 1, 2"
    );
    let mut groups: BTreeMap<String, Vec<Source>> = BTreeMap::new();
    for row in read(conn, &query).await? {
        let recorded = groups.entry(row.try_get(0)?).or_default();
        if let Some(topic) = row.try_get::<Option<String>, _>(1)? {
            recorded.push((topic, row.try_get(2)?));
        }
    }
    Ok(groups)
}
