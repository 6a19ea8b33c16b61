//! Tests a group with many held keys and large events.

use super::*;

pub(super) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            heads_that_wait_are_not_read_and_those_that_may_go_are_read_in_parts,
            very_many_heads_of_a_paused_topic_do_not_hold_up_those_of_another,
            heads_that_were_taken_before_a_pause_do_not_hold_up_those_of_another_topic;
    }
}

/// The value of an event with the number `n` of its row.
const SMALL: &str = "format('{\"n\": %s}', n)";

/// Gives a key of the topic to each number, with a head that has this reason.
async fn hold(
    field: &Field,
    topic: &str,
    reason: &str,
    numbers: std::ops::RangeInclusive<i64>,
    value: &str,
) -> anyhow::Result<()> {
    let (group, first, last) = (&field.outbox.topic, numbers.start(), numbers.end());
    let rows = format!(
        "insert into processed_events_held (consumer_group, topic, key, event_id, read_topic, read_partition, read_offset, \
         reason, value, header_names, header_values, written_at) \
         select '{group}', '{topic}', convert_to('k' || n, 'UTF8'), id, '{topic}', 0, 1000000 + n, '{reason}', \
         convert_to({value}, 'UTF8'), array['event-id', 'event-type', 'event-version'], \
         array[convert_to(id::text, 'UTF8'), 'Counted', '1'], 0 \
         from (select n, gen_random_uuid() as id from generate_series({first}, {last}) n) numbered"
    );
    field.outbox.execute(&rows).await?;
    Ok(())
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
    let large = "(select string_agg(md5((n * 40000 + i)::text), '') from generate_series(1, 31250) i)";
    hold(&field, topic, "permanent", 10_001..=10_200, large).await?;
    hold(&field, topic, "held", 1..=READY, SMALL).await?;
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

/// A member keeps a thousand heads at most in memory. All of them would be those of the paused topic.
async fn very_many_heads_of_a_paused_topic_do_not_hold_up_those_of_another(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let paused = format!("{}-paused", field.outbox.topic);
    hold(&field, &paused, "held", 1..=20_000, SMALL).await?;
    hold(&field, &field.outbox.topic, "held", 20_001..=20_001, SMALL).await?;
    let consumer = field.counting();
    let control = consumer.control();
    control.pause(&paused);
    let running = Running::start(consumer);
    field.until_effects(1).await;
    ensure!(field.outbox.number("select max(n) from effects").await? == 20_001);
    let stats = running.stop().await?;
    ensure!(stats.applied() == 1, "{stats:?}");
    Ok(())
}

/// The drain has one worker, and the heads of the paused topic are in its queue.
async fn heads_that_were_taken_before_a_pause_do_not_hold_up_those_of_another_topic(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let field = Field::new(&database, kafka).await?;
    let paused = format!("{}-paused", field.outbox.topic);
    hold(&field, &paused, "held", 1..=20, SMALL).await?;
    let (at_work, go_on, calls) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(AtomicU32::new(0)));
    let (arrived, wait) = (Arc::clone(&at_work), Arc::clone(&go_on));
    let consumer = field.consumer().on("Counted", 1..=1, move |mut ctx: Context, event: Counted| {
        let (arrived, wait, is_first) =
            (Arc::clone(&arrived), Arc::clone(&wait), calls.fetch_add(1, Ordering::Relaxed) == 0);
        async move {
            insert(&mut ctx, event.n).await?;
            if is_first {
                arrived.notify_one();
                wait.notified().await;
            }
            Ok(())
        }
    });
    let control = consumer.control();
    let running = Running::start(consumer);
    at_work.notified().await;
    control.pause(&paused);
    hold(&field, &field.outbox.topic, "held", 21..=21, SMALL).await?;
    go_on.notify_one();
    field.until_effects(2).await;
    ensure!(field.outbox.number("select count(*) from effects where n = 21").await? == 1);
    control.resume(&paused);
    field.until_effects(21).await;
    running.stop().await?;
    Ok(())
}
