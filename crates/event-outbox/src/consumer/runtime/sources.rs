//! Records which topics a group reads, and where its dead letters are, beside the inbox. What prunes the inbox looks there.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::Names;

/// Records the topics of the group; true stands for dead letters. Topics that it read before stay recorded.
pub(super) async fn record(
    tx: &mut PgConnection,
    names: &Names,
    group: &str,
    topics: &[(String, bool)],
    persistent: bool,
) -> Result<(), sqlx::Error> {
    // Postgres looks for `unnest` of several arrays in pg_catalog alone, and takes no schema in front of it.
    let sql = format!(
        "insert into {} (consumer_group, topic, dead_letters) \
         select $1, topic, dead_letters from unnest($2::pg_catalog.text[], $3::pg_catalog.bool[]) given (topic, dead_letters) \
         order by topic on conflict do nothing",
        names.source()
    );
    let (topics, dead_letters): (Vec<&str>, Vec<bool>) =
        topics.iter().map(|(topic, dead_letters)| (topic.as_str(), *dead_letters)).unzip();
    let record = sqlx::query(AssertSqlSafe(sql)).bind(group).bind(topics).bind(dead_letters).persistent(persistent);
    record.execute(tx).await.map(drop)
}
