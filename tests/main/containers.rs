//! Runs the containers of the Helm chart (deploy/helm/golden) and of deploy/compose: the same arguments, variables, files, user and read-only
//! file system, with the binary of this build, against a real Postgres and a real Kafka. Ports and addresses are those of the test.

mod container;
mod node;

use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::admin::Admin;
use lab::demo::{PrivatePostgres, free_port};
use lab::kafka::RealKafka;
use lab::{Outbox, SOON, TestDatabase, eventually, options_for_tests, trials};
use libtest_mimic::Trial;

use self::container::{Cluster, Container};
use self::node::{Node, Running};
use crate::secrets::{self, Certificates};
use crate::tls;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            the_containers_of_chart_and_compose_work_with_tls_secrets_and_least_rights;
        with_both:
            the_pods_of_the_least_values_work_and_are_upgraded;
    }
}

const TOKEN: &str = "token-of-the-admin-address";

/// Waits until a probe of the container passes.
async fn until_passes(node: &Node, container: &Container, probe: &str) {
    eventually(&format!("the {probe} passes"), SOON * 2, || async {
        match node.probe(container, probe) {
            Ok(output) if output.status.success() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Starts the relay, waits for its probes, and lets it publish ten events.
async fn publishes(node: &Node, container: &Container, outbox: &Outbox, entity: &str) -> anyhow::Result<Running> {
    ensure!(!container.probes.is_empty(), "no probes");
    for probe in container.probes.keys() {
        let output = node.probe(container, probe)?;
        ensure!(output.status.code() == Some(1), "the {probe} passes without a relay: {output:?}");
    }
    let relay = node.start(container)?;
    for probe in container.probes.keys() {
        until_passes(node, container, probe).await;
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

async fn works(container: &Container, cluster: &Cluster) -> anyhow::Result<()> {
    let output = Node::new(container, cluster)?.run(container).await?;
    ensure!(output.status.success(), "{:?}: {output:?}", container.arguments);
    Ok(())
}

/// Runs the containers with TLS and a login to both servers. Owner and relay's user are no superusers, as with managed databases.
async fn the_containers_of_chart_and_compose_work_with_tls_secrets_and_least_rights() -> anyhow::Result<()> {
    let certificates = Certificates::make()?;
    let (kafka, door) = secrets::guarded(&certificates)?;
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let outbox = Outbox::found_on(&postgres, "order-events");
    tls::make_certificates(&postgres).await?;
    tls::present(&outbox, postgres.directory(), "server").await?;
    kafka.create_topic(&outbox.topic, 3, &[]).await?;
    for sql in [
        "create role owner login password 'owner' createrole",
        "alter schema public owner to owner",
        "create role event_outbox_relay",
        "create role relay login password 'relay' in role event_outbox_relay",
    ] {
        outbox.execute(sql).await?;
    }
    let root = postgres.directory().join("root.crt");
    let url = |user: &str, parameters: &str| {
        let url = tls::url(&postgres, "localhost", &format!("sslmode=verify-full{parameters}"))?;
        let (_, place) = url.rsplit_once('@').context("a user")?;
        anyhow::Ok(format!("postgres://{user}:{user}@{place}"))
    };
    let authority = std::fs::read_to_string(certificates.text("broker.pem"))?;
    let cluster = Cluster::default()
        .with("outbox-database", "owner-url", url("owner", "")?)
        .with("outbox-database", "relay-url", url("relay", "")?)
        .with("outbox-kafka", "password", secrets::SASL_PASSWORD)
        .with("outbox-admin", "token", TOKEN)
        .with("database-ca", "ca.crt", std::fs::read_to_string(&root)?)
        .with("kafka-ca", "ca.crt", authority.clone());
    let (brokers, admin) = (format!("127.0.0.1:{door}"), format!("0.0.0.0:{}", free_port()?));
    let pod = |kind: &str| {
        let container = Container::of_chart("existing-secrets", kind)?;
        anyhow::Ok(container.at("KAFKA_BOOTSTRAP_SERVERS", &brokers).at("RELAY_ADMIN_ADDRESS", &admin))
    };

    works(&pod("Job")?, &cluster).await?;
    works(&pod("Pod")?, &cluster).await?;
    let relay = pod("Deployment")?;
    let node = Node::new(&relay, &cluster)?;
    let running = publishes(&node, &relay, &outbox, "chart").await?;
    is_on_topic(&outbox, &kafka, "chart").await?;
    let sessions = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'relay'";
    ensure!(outbox.number(sessions).await? > 0, "the relay has no session");
    ensure!(outbox.number(&format!("{sessions} and not ssl")).await? == 0, "a session without TLS");
    let scraped = Admin::at(admin.replace("0.0.0.0", "127.0.0.1").parse()?);
    ensure!(scraped.get("/metrics").await?.status == 401, "metrics without a token");
    let answered = scraped.showing(&format!("Bearer {TOKEN}")).get("/metrics").await?;
    ensure!(answered.status == 200 && answered.body.contains("outbox_relay_ready 1"), "{answered:?}");
    ensure!(running.terminate().await? == Some(0), "the relay did not drain");

    let admin = format!("127.0.0.1:{}", free_port()?);
    let variables = [("KAFKA_BOOTSTRAP_SERVERS", brokers.as_str())];
    let service = |name: &str| {
        let container = Container::of_compose(name, &variables)?;
        anyhow::Ok(container.at("RELAY_ADMIN_ADDRESS", &admin))
    };
    // Compose mounts no file for it, and the container does not see the server's directory.
    let text = std::fs::read_to_string(&root)?;
    let start = text.find("-----BEGIN").context("no certificate")?;
    let inline: String = text[start..].bytes().map(|byte| format!("%{byte:02X}")).collect();
    let parameters = format!("&sslrootcert={inline}");
    let cluster = Cluster::default()
        .with("secrets", "owner-url", url("owner", &parameters)?)
        .with("secrets", "relay-url", url("relay", &parameters)?)
        .with("secrets", "kafka-password", secrets::SASL_PASSWORD)
        .with("secrets", "kafka-ca", authority);
    works(&service("migrate")?, &cluster).await?;
    let relay = service("relay")?;
    let node = Node::new(&relay, &cluster)?;
    let running = publishes(&node, &relay, &outbox, "compose").await?;
    is_on_topic(&outbox, &kafka, "compose").await?;
    ensure!(running.terminate().await? == Some(0), "the relay did not drain");
    postgres.stop().await;
    Ok(())
}

/// Runs the pods of the smallest set of values, and the migration again as an upgrade does, while the relay runs.
async fn the_pods_of_the_least_values_work_and_are_upgraded(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let cluster = Cluster::default().with("outbox-relay", "DATABASE_URL", database.url());
    let cluster = cluster.with("outbox-relay-owner", "DATABASE_URL", database.url());
    let admin = format!("127.0.0.1:{}", free_port()?);
    let relay = Container::of_chart("minimal", "Deployment")?;
    let relay = relay.at("KAFKA_BOOTSTRAP_SERVERS", &kafka.bootstrap()).at("RELAY_ADMIN_ADDRESS", &admin);
    let node = Node::new(&relay, &cluster)?;
    let running = publishes(&node, &relay, &outbox, "first").await?;
    works(&Container::of_chart("minimal", "Job")?, &cluster).await?;
    ensure!(running.terminate().await? == Some(0), "the relay did not drain");
    let running = publishes(&node, &relay, &outbox, "second").await?;
    ensure!(running.terminate().await? == Some(0), "the relay did not drain");
    for entity in ["first", "second"] {
        is_on_topic(&outbox, &kafka, entity).await?;
    }
    Ok(())
}
