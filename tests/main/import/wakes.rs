//! Tests that the trigger of `import debezium` wakes a relay that sleeps.

use super::*;
use crate::wake_up::{EVENTS, sleepy, until_asleep};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            rows_of_the_application_wake_a_relay;
    }
}

async fn rows_of_the_application_wake_a_relay(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let importing = Relay::bare().with("DATABASE_URL", database.url());
    let mut case = case("defaults")?;
    case.options["transforms.outbox.route.topic.replacement"] = json!(format!("{}.${{routedByValue}}", outbox.topic));
    kafka.create_topic(&format!("{}.order", outbox.topic), 1, &[]).await?;
    let relay = sleepy(&outbox, &kafka).with("RELAY_ENVELOPE", "debezium").start_ready("sleepy").await?;
    for arguments in [&[][..], &["--order", "strict"], &["--bulk"]] {
        let undo = take_over(&outbox, &importing, &case, arguments).await?;
        for _ in 0..EVENTS / 3 {
            until_asleep(&outbox).await;
            outbox.execute("insert into outbox values (gen_random_uuid(), 'order', 'o-1', 'x', '{}')").await?;
            outbox.until_settled_of("o-1").await;
        }
        apply(&outbox, &undo).await?;
        apply(&outbox, "drop table outbox").await?;
    }
    ensure!(kafka.read_topic(&format!("{}.order", outbox.topic)).await?.len() as i64 == EVENTS);
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}
