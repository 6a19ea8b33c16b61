//! Runs the pods that the Helm chart renders (deploy/helm/golden): the same arguments, variables, files, user and read-only file system,
//! with the binary of this build, against a real Postgres and a real Kafka.

mod container;
mod pod;

use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::admin::Admin;
use lab::demo::{PrivatePostgres, free_port};
use lab::kafka::RealKafka;
use lab::{Outbox, SOON, TestDatabase, eventually, options_for_tests, trials};
use libtest_mimic::Trial;

use self::container::Node;
use self::pod::{Cluster, Pod};
use crate::secrets::{self, Certificates};
use crate::tls;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            the_pods_of_the_chart_work_with_tls_secrets_and_least_rights;
        with_both:
            the_pods_of_the_least_values_work_and_are_upgraded;
    }
}

const TOKEN: &str = "token-of-the-admin-address";

/// Waits until a probe of the pod passes.
async fn until_passes(node: &Node, pod: &Pod, probe: &str) {
    eventually(&format!("the {probe} passes"), SOON * 2, || async {
        match node.exec(pod, &pod.probe(probe)) {
            Ok(output) if output.status.success() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Starts the relay, waits for its probes, and lets it publish ten events.
async fn publishes(node: &Node, pod: &Pod, outbox: &Outbox, entity: &str) -> anyhow::Result<container::Running> {
    let relay = node.start(pod)?;
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        until_passes(node, pod, probe).await;
    }
    outbox
        .execute(&format!(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, topic) \
             select 'order', '{entity}', 'Counted', jsonb_build_object('n', n), '{}' from generate_series(1, 10) n",
            outbox.topic
        ))
        .await?;
    outbox.until_settled_of(entity).await;
    Ok(relay)
}

/// Expects the records of the entity on the topic, in order.
async fn is_on_topic(outbox: &Outbox, kafka: &RealKafka, entity: &str) -> anyhow::Result<()> {
    let published = outbox.published_numbers(kafka).await?;
    let all: Vec<_> = (1..=10).collect();
    ensure!(published.get(entity) == Some(&all), "{published:?}");
    Ok(())
}

/// Runs the pods with a Secret for each purpose, TLS and a login to both servers, and an owner and a relay's user that are no superusers. As
/// with many managed databases, the owner may not grant `pg_read_all_stats`.
async fn the_pods_of_the_chart_work_with_tls_secrets_and_least_rights() -> anyhow::Result<()> {
    let certificates = Certificates::make()?;
    let (kafka, door) = secrets::guarded(&certificates)?;
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let outbox = Outbox::found_on(&postgres, "order-events");
    tls::make_certificates(&postgres).await?;
    tls::present(&outbox, postgres.directory(), "server").await?;
    kafka.create_topic(&outbox.topic, 3, &[]).await?;
    // The first part of docs/how-to/deploy-kubernetes.md: users before the installation, and the roles that it will give rights.
    for sql in [
        "create role owner login password 'owner' createrole",
        "alter schema public owner to owner",
        "create role event_outbox_relay",
        "create role relay login password 'relay' in role event_outbox_relay",
    ] {
        outbox.execute(sql).await?;
    }
    let url = |user: &str| {
        let url = tls::url(&postgres, "localhost", "sslmode=verify-full")?;
        let (_, place) = url.rsplit_once('@').context("a user")?;
        anyhow::Ok(format!("postgres://{user}:{user}@{place}"))
    };
    let cluster = Cluster::default()
        .with("outbox-database", "owner-url", url("owner")?)
        .with("outbox-database", "relay-url", url("relay")?)
        .with("outbox-kafka", "password", secrets::SASL_PASSWORD)
        .with("outbox-admin", "token", TOKEN)
        .with("database-ca", "ca.crt", std::fs::read_to_string(postgres.directory().join("root.crt"))?)
        .with("kafka-ca", "ca.crt", std::fs::read_to_string(certificates.text("broker.pem"))?);
    let admin = format!("0.0.0.0:{}", free_port()?);
    let pod = |kind: &str| {
        let pod = Pod::of("existing-secrets", kind)?;
        anyhow::Ok(pod.at("KAFKA_BOOTSTRAP_SERVERS", &format!("127.0.0.1:{door}")).at("RELAY_ADMIN_ADDRESS", &admin))
    };

    let migration = pod("Job")?;
    let output = Node::new(&migration, &cluster)?.run(&migration).await?;
    ensure!(output.status.success(), "{output:?}");
    let check = pod("Pod")?;
    let output = Node::new(&check, &cluster)?.run(&check).await?;
    ensure!(output.status.success(), "{output:?}");

    let relay = pod("Deployment")?;
    let node = Node::new(&relay, &cluster)?;
    let output = node.exec(&relay, &relay.probe("livenessProbe"))?;
    ensure!(output.status.code() == Some(1), "a probe passes without a relay: {output:?}");
    let running = publishes(&node, &relay, &outbox, "secure").await?;
    is_on_topic(&outbox, &kafka, "secure").await?;
    let plain = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'relay'";
    ensure!(outbox.number(&format!("{plain} and not ssl")).await? == 0, "a session without TLS");
    let scraped = Admin::at(admin.replace("0.0.0.0", "127.0.0.1").parse()?);
    ensure!(scraped.get("/metrics").await?.status == 401, "metrics without a token");
    let answered = scraped.showing(&format!("Bearer {TOKEN}")).get("/metrics").await?;
    ensure!(answered.status == 200 && answered.body.contains("outbox_relay_ready 1"), "{answered:?}");
    ensure!(running.terminate().await? == Some(0), "the relay did not drain");
    postgres.stop().await;
    Ok(())
}

/// Runs the pods of the smallest set of values, and the migration again as an upgrade does, while the relay publishes.
async fn the_pods_of_the_least_values_work_and_are_upgraded(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let cluster = Cluster::default().with("outbox-relay", "DATABASE_URL", database.url()).with(
        "outbox-relay-owner",
        "DATABASE_URL",
        database.url(),
    );
    let admin = format!("127.0.0.1:{}", free_port()?);
    let relay = Pod::of("minimal", "Deployment")?
        .at("KAFKA_BOOTSTRAP_SERVERS", &kafka.bootstrap())
        .at("RELAY_ADMIN_ADDRESS", &admin);
    let node = Node::new(&relay, &cluster)?;
    let running = publishes(&node, &relay, &outbox, "first").await?;
    let migration = Pod::of("minimal", "Job")?;
    let output = Node::new(&migration, &cluster)?.run(&migration).await?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(running.terminate().await? == Some(0), "the relay did not drain");
    let running = publishes(&node, &relay, &outbox, "second").await?;
    ensure!(running.terminate().await? == Some(0), "the relay did not drain");
    for entity in ["first", "second"] {
        is_on_topic(&outbox, &kafka, entity).await?;
    }
    Ok(())
}
