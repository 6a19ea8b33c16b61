//! Tests a group with many held keys and large events.

use super::*;

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            heads_that_wait_are_not_read_and_those_that_may_go_are_read_in_parts;
    }
}

/// Two hundred heads of a megabyte have failed, and more heads may be applied than a member keeps in memory.
async fn heads_that_wait_are_not_read_and_those_that_may_go_are_read_in_parts(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    const READY: i64 = 1_300;
    const MEGABYTES: u64 = 150;
    let field = Field::new(&database, kafka).await?;
    let topic = &field.outbox.topic;
    for (reason, first, last, value) in [
        (
            "permanent",
            10_001,
            10_200,
            "(select string_agg(md5((n * 40000 + i)::text), '') from generate_series(1, 31250) i)",
        ),
        ("held", 1, READY, "format('{\"n\": %s}', n)"),
    ] {
        let rows = format!(
            "insert into processed_events_held (consumer_group, topic, key, event_id, read_topic, read_partition, read_offset, \
             reason, value, header_names, header_values, written_at) \
             select '{topic}', '{topic}', convert_to('k' || n, 'UTF8'), id, '{topic}', 0, 1000000 + n, '{reason}', \
             convert_to({value}, 'UTF8'), array['event-id', 'event-type', 'event-version'], \
             array[convert_to(id::text, 'UTF8'), 'Counted', '1'], 0 \
             from (select n, gen_random_uuid() as id from generate_series({first}, {last}) n) numbered"
        );
        field.outbox.execute(&rows).await?;
    }
    let child = Command::new(std::env::current_exe()?)
        .arg(MEMBER)
        .args([database.url(), field.kafka.bootstrap(), topic.clone()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let child = Killed(child);
    field.until_effects(READY).await;
    let most = resident_megabytes(child.0.id())?;
    ensure!(most < MEGABYTES, "{most} MB were resident");
    let left = "select count(*) from processed_events_held where reason = 'held'";
    ensure!(field.outbox.number(left).await? == 0 && field.effects().await? == READY);
    Ok(())
}
