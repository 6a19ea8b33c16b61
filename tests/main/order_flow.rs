//! Tests the order flow on a real Postgres and a real Kafka: each of its processes is killed once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use lab::demo::{DemoOptions, FlowProcess, OrderFlowOptions, OwnServers, ServerChoice, run_order_flow};
use libtest_mimic::Trial;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::sync::mpsc;

use lab::kafka::RealKafka;
use lab::{SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            the_books_agree_although_every_service_and_every_relay_is_killed;
    }
}

async fn the_books_agree_although_every_service_and_every_relay_is_killed(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let demo = DemoOptions {
        servers: ServerChoice::Own(Box::new(OwnServers {
            database: database.connect_options(),
            connect_timeout: SOON,
            target: database.name().to_owned(),
            kafka: brokers(&kafka),
        })),
        env: [("DATABASE_URL", database.url()), ("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap())]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
        program: PathBuf::from(env!("CARGO_BIN_EXE_outbox-relay")),
    };
    let (deadline, kills) = (Duration::from_secs(10), FlowProcess::ALL.to_vec());
    let options = OrderFlowOptions { demo, orders: 72, deadline, kills };
    let (_nobody, interrupts) = mpsc::channel(1);
    let reconciliation = run_order_flow(options, interrupts).await?;
    ensure!(reconciliation.is_kept() && reconciliation.kills == 8, "{reconciliation}");
    ensure!(
        reconciliation.count("orders ended") == Some(72) && reconciliation.count("payments agree") > Some(0),
        "{reconciliation}"
    );

    let schemas = "select count(*) from pg_namespace where nspname like 'outbox_demo_%'";
    let schemas: i64 = sqlx::query_scalar(schemas).fetch_one(&mut database.connect().await?).await?;
    ensure!(schemas == 0, "a schema is still there");
    eventually("topics and groups are gone", SOON, || async {
        let left = left_in(&kafka)?;
        ensure!(left.is_empty(), "{left:?}");
        anyhow::Ok(())
    })
    .await;
    Ok(())
}

fn brokers(kafka: &RealKafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.bootstrap());
    config
}

/// Returns the topics and groups of order flows that are left.
fn left_in(kafka: &RealKafka) -> anyhow::Result<Vec<String>> {
    let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create()?;
    tokio::task::block_in_place(|| {
        let (metadata, groups) = (client.fetch_metadata(None, SOON)?, client.fetch_group_list(None, SOON)?);
        let topics = metadata.topics().iter().map(|topic| topic.name().to_owned());
        let groups = groups.groups().iter().map(|group| group.name().to_owned());
        let ours = |name: &String| {
            ["order-events", "stock-events", "payment-events", "mail-events", "dead-letter-events"]
                .iter()
                .any(|topic| name.starts_with("outbox-demo-") && name.ends_with(topic))
                || name.starts_with("outbox_demo_")
        };
        Ok(topics.chain(groups).filter(ours).collect())
    })
}
