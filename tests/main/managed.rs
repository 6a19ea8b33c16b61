//! Tests what managed databases allow: administrators without superuser, poolers that accept TLS alone. Runs the statements and settings of the
//! pages about them (docs/how-to/deploy-….md).

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::demo::PrivatePostgres;
use lab::kafka::RealKafka;
use lab::pgbouncer::PgBouncer;
use lab::{Outbox, Relay, TestDatabase, options_for_tests, trials};
use libtest_mimic::Trial;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::roles;
use crate::secrets::Certificates;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            every_setting_of_the_deploy_pages_is_taken;
        with_kafka:
            the_statements_of_the_deploy_pages_are_enough_for_an_administrator_without_superuser;
        with_both:
            a_relay_of_least_rights_works_behind_a_pooler_that_accepts_tls_alone;
    }
}

/// The pages with their own statements for Postgres.
const PAGES: [&str; 5] = ["kubernetes", "compose", "aws", "google", "supabase-neon"];

fn page(name: &str) -> anyhow::Result<String> {
    let path = format!("docs/how-to/deploy-{name}.md");
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path)).context(path)
}

/// Returns the code of all blocks of this language.
fn code(page: &str, language: &str) -> String {
    let (mut code, mut inside) = (String::new(), false);
    for line in page.lines().map(str::trim_start) {
        if line.starts_with("```") {
            inside = line == format!("```{language}");
        } else if inside {
            code += line;
            code.push('\n');
        }
    }
    code
}

/// Returns the settings that the shell code of a page sets, with values in place of the shell's variables.
fn settings(page: &str) -> Vec<(String, String)> {
    let code = code(page, "sh");
    let assigned = code.lines().filter_map(|line| line.trim_start_matches("export ").split_once('='));
    let is_setting = |name: &str| ["RELAY_", "KAFKA_", "DATABASE_"].iter().any(|prefix| name.starts_with(prefix));
    let own = assigned.filter(|(name, value)| is_setting(name) && !name.contains(' ') && !value.contains(' '));
    own.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect()
}

async fn every_setting_of_the_deploy_pages_is_taken() -> anyhow::Result<()> {
    // A file of a page is not here; one with a URL in it stands for each.
    let secret = tempfile::NamedTempFile::new()?;
    std::fs::write(secret.path(), "postgres://relay@localhost/app")?;
    // The settings of the others go through the chart and the file for Compose.
    for name in ["google", "supabase-neon"] {
        let own = settings(&page(name)?);
        ensure!(own.len() >= 5, "{name}: {own:?}");
        let relay = own.iter().fold(Relay::bare(), |relay, (setting, value)| {
            let path = secret.path().display().to_string();
            relay.with(setting, if setting.ends_with("_FILE") { &path } else { value })
        });
        let has_url = own.iter().any(|(setting, _)| setting == "DATABASE_URL_FILE");
        let relay = if has_url { relay } else { relay.with("DATABASE_URL", "postgres://relay@localhost/app") };
        let output = relay.argument("show").output("config").await?;
        ensure!(output.code == Some(0), "{name}: {output:?}");
    }
    Ok(())
}

/// Runs the statements of each page as an administrator who may create roles and databases, and no more. The migration, the check and the relay
/// work with what they leave.
async fn the_statements_of_the_deploy_pages_are_enough_for_an_administrator_without_superuser(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let mut tried: Vec<String> = Vec::new();
    for name in PAGES {
        let page = page(name)?;
        let statements = code(&page, "sql");
        ensure!(!statements.is_empty(), "{name} has no statements");
        if !tried.contains(&statements) {
            works_for_an_administrator(name, &page, &statements, &kafka)
                .await
                .with_context(|| format!("the statements of deploy-{name}.md"))?;
            tried.push(statements);
        }
    }
    Ok(())
}

async fn works_for_an_administrator(name: &str, page: &str, statements: &str, kafka: &RealKafka) -> anyhow::Result<()> {
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let url = postgres.url("app");
    let (_, place) = url.rsplit_once('@').context("a user")?;
    let login = |user: &str, password: &str| format!("postgres://{user}:{password}@{place}");
    let mut superuser = postgres.connect("postgres").await?;
    superuser.execute("create role administrator login password 'administrator' createrole createdb").await?;
    superuser.execute("create role shop login password 'shop'").await?;
    let administrator = login("administrator", "administrator");
    let mut own = PgConnection::connect(&administrator.replace("/app?", "/postgres?")).await?;
    own.execute("create database app").await?;
    let mut own = PgConnection::connect(&administrator).await?;
    own.execute(sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))).await?;

    let schema = settings(page).into_iter().find(|(setting, _)| setting == "RELAY_SCHEMA").map(|(_, value)| value);
    let schema = schema.unwrap_or_else(|| "public".to_owned());
    let relay = Relay::bare().with("RELAY_SCHEMA", &schema);
    let migrated = relay.clone().with("DATABASE_URL", &administrator).argument("--roles").output("migrate").await?;
    ensure!(migrated.code == Some(0), "{migrated:?}");
    // Not even for the roles that it has made may this user grant what it does not have.
    ensure!(migrated.stderr.contains("pg_read_all_stats"), "{migrated:?}");

    own.execute("grant event_outbox_writer to shop").await?;
    let password = statements.split('\'').nth(1).context("a password")?;
    let topic = format!("managed-{name}");
    kafka.create_topic(&topic, 1, &[]).await?;
    let relay = relay
        .with("DATABASE_URL", login("relay", password))
        .with("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap())
        .with("RELAY_TOPIC", &topic);
    let checked = relay.clone().argument("--topic").argument(&topic).output("check").await?;
    ensure!(checked.code == Some(0), "{checked:?}");
    let running = relay.start_ready(name).await?;
    let mut shop = PgConnection::connect(&login("shop", "shop")).await?;
    let emit = format!("select {schema}.outbox_emit('order', 'o-1', 'OrderPlaced', '{{}}')");
    shop.execute(sqlx::raw_sql(AssertSqlSafe(emit))).await?;
    lab::eventually("the event is on the topic", lab::SOON, || async {
        match kafka.read_topic(&topic).await {
            Ok(records) if records.len() == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    ensure!(running.stop().await? == Some(0), "the relay did not drain");
    postgres.stop().await;
    Ok(())
}

/// Imitates the poolers of Supabase and Neon: transaction mode, TLS alone, and a user that is no superuser.
async fn a_relay_of_least_rights_works_behind_a_pooler_that_accepts_tls_alone(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    roles::made(&database, &[]).await?;
    let direct = roles::user(&database, "relay").await?;
    let certificates = Certificates::make()?;
    let files = ["broker.pem", "broker.key"].map(|name| certificates.text(name));
    let pooler = PgBouncer::start_before(&direct, "transaction", Some([files[0].as_ref(), files[1].as_ref()])).await?;
    let with_url = |parameters: &str| {
        let url = pooler.url().replace("sslmode=require", parameters);
        Relay::new(&url, &kafka.bootstrap()).with("RELAY_TOPIC", &outbox.topic).with("RELAY_PREPARED_STATEMENTS", false)
    };
    let refused = with_url("sslmode=disable").output("status").await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("OR-2304"), "{refused:?}");
    ensure!(refused.stderr.contains("SSL required"), "{refused:?}");
    let verified = with_url(&format!("sslmode=verify-full&sslrootcert={}", files[0]));
    let checked = verified.output("check").await?;
    ensure!(checked.code == Some(0) && checked.stdout.contains("pooler-transaction"), "{checked:?}");

    let polls = verified.start_ready("polls").await?;
    polls.wait_for("wake_up_off").await;
    outbox.write("polls", 1, 20).await?;
    outbox.until_settled_of("polls").await;
    ensure!(polls.stop().await? == Some(0), "the relay did not drain");
    let woken = verified.with("RELAY_WAKE_UP_URL", &direct).start_ready("woken").await?;
    outbox.write("woken", 1, 20).await?;
    outbox.until_settled_of("woken").await;
    ensure!(woken.lines("wake_up_off").is_empty(), "the relay polls in spite of its direct connection");
    ensure!(woken.stop().await? == Some(0), "the relay did not drain");
    for entity in ["polls", "woken"] {
        let published = outbox.published_numbers(&kafka).await?;
        ensure!(
            published.get(entity).is_some_and(|numbers| numbers.is_sorted() && numbers.len() == 20),
            "{published:?}"
        );
    }
    pooler.stop();
    Ok(())
}
