//! Tests a relay's whole life with every secret set, and searches everything that it printed for the secrets.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;
use lab::demo::free_port;
use libtest_mimic::Trial;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use lab::kafka::RealKafka;
use lab::{Missing, Outbox, Relay, RelayProcess, SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            nothing_that_a_day_of_operation_prints_has_a_secret_or_a_payload_in_it,
            a_relay_that_cannot_start_says_so_as_a_line_of_its_log,
            a_relay_that_crashes_leaves_no_core_with_its_secrets;
        alone:
            every_command_is_among_those_whose_output_is_searched_for_secrets;
    }
}

/// The secrets. Each text occurs nowhere else, and none is a part of another.
const DATABASE_PASSWORD: &str = "marker-of-the-database";
pub(crate) const SASL_PASSWORD: &str = "marker-of-the-login";
const ROTATED_PASSWORD: &str = "marker-of-the-login-before";
const KEY_PASSWORD: &str = "marker-of-the-key";
const OAUTH_CONFIG: &str = "marker-of-the-token";
const WAKE_UP_PASSWORD: &str = "marker-of-the-listener";
const ADMIN_TOKEN: &str = "marker-of-the-admin-address";
const PAYLOAD: &str = "marker-of-the-payload";
const HEADER: &str = "marker-of-the-header";
const SECRETS: [&str; 9] = [
    DATABASE_PASSWORD,
    SASL_PASSWORD,
    ROTATED_PASSWORD,
    KEY_PASSWORD,
    OAUTH_CONFIG,
    WAKE_UP_PASSWORD,
    ADMIN_TOKEN,
    PAYLOAD,
    HEADER,
];

/// The calls of all commands but `run`, which is called in other ways. `TOPIC` and `DEAD_LETTERS` stand for the names of topics.
const CALLS: &[&[&str]] = &[
    &["check"],
    &["check", "--json"],
    &["status"],
    &["status", "--json"],
    &["health"],
    &["migrate"],
    &["migrate", "--print"],
    &["explain", "--entity", "bad"],
    &["explain", "--entity", "c1", "--json"],
    &["explain-route", "--entity-type", "order", "--entity-id", "c1"],
    &["tail", "--for", "1s"],
    &["dead", "list"],
    &["dead", "list", "--json"],
    &["dead", "show"],
    &["dead", "show", "--json"],
    &["dead", "retry", "--all", "--yes"],
    &["dead", "discard", "--all", "--dry-run", "--reason", "a trial"],
    &["pause", "--topic", "TOPIC", "--reason", "a look"],
    &["pause", "--list"],
    &["resume", "--topic", "TOPIC"],
    &["prune", "--mode", "delete", "--after", "1d", "--dry-run"],
    &["verify"],
    &["verify", "--json"],
    &["compare", "--left", "TOPIC", "--right", "DEAD_LETTERS", "--id-header", "event-id", "--payload"],
    &["compare", "--left", "TOPIC", "--right", "DEAD_LETTERS", "--id-header", "event-id", "--payload", "--json"],
    &["import", "debezium", "CONNECTOR"],
    &["import", "debezium", "CONNECTOR", "--json"],
    &["capture", "--list"],
    &["capture", "event_outbox", "--dry-run"],
    &["adopt", "event_outbox", "--dry-run"],
    &["replay", "--all", "--dry-run"],
    &["dlq", "list", "DEAD_LETTERS"],
    &["dlq", "list", "DEAD_LETTERS", "--json"],
    &["dlq", "show", "DEAD_LETTERS"],
    &["dlq", "show", "DEAD_LETTERS", "--json"],
    &["dlq", "redrive", "DEAD_LETTERS", "--all", "--dry-run"],
    &["dlq", "discard", "DEAD_LETTERS", "--all", "--dry-run", "--reason", "a trial"],
    &["config", "show"],
    &["config", "show", "--defaults", "--json"],
    &["completions", "bash"],
    &["man"],
    // Without an answer these end when they have named the servers. Their relays are the same binary.
    &["bench", "drain"],
    &["demo"],
    &["demo", "order-flow"],
];

/// Returns the commands, such as `dead list`, by the reference, which a test keeps in step with the binary. Left out are those that only have
/// subcommands.
fn commands() -> anyhow::Result<Vec<String>> {
    let reference = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/commands.md"))?;
    let named = reference.lines().filter_map(|line| line.strip_prefix("## outbox-relay ")).map(str::to_owned);
    let named: Vec<String> = named.collect();
    let has_own_call = |name: &String| {
        let is_group = named.iter().any(|other| other.starts_with(&format!("{name} ")));
        !is_group || name == "demo"
    };
    ensure!(named.len() > 20, "docs/reference/commands.md has no commands");
    Ok(named.iter().filter(|name| has_own_call(name)).cloned().collect())
}

/// The certificate and key of a broker, and of a client whose key has a password.
pub(crate) struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    pub(crate) fn make() -> anyhow::Result<Self> {
        if !Path::new("/usr/bin/openssl").exists() {
            return Err(Missing("openssl is not installed".to_owned()).into());
        }
        let made = Self { directory: tempfile::tempdir()? };
        made.openssl("broker", &["-nodes", "-addext", "subjectAltName=IP:127.0.0.1"])?;
        made.openssl("client", &["-passout", &format!("pass:{KEY_PASSWORD}")])?;
        let both = [std::fs::read(made.path("broker.key"))?, std::fs::read(made.path("broker.pem"))?].concat();
        std::fs::write(made.path("broker.both"), both)?;
        Ok(made)
    }

    /// Makes the certificate of a client, and its key without a password.
    pub(crate) fn plain_client(&self, name: &str) -> anyhow::Result<()> {
        self.openssl(name, &["-nodes"])
    }

    fn openssl(&self, name: &str, options: &[&str]) -> anyhow::Result<()> {
        let made = Command::new("/usr/bin/openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=localhost", "-keyout"])
            .arg(self.path(&format!("{name}.key")))
            .arg("-out")
            .arg(self.path(&format!("{name}.pem")))
            .args(options)
            .output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

/// Starts a broker with a second listener that uses TLS and asks for a login; returns that listener's port.
pub(crate) fn guarded(certificates: &Certificates) -> anyhow::Result<(RealKafka, u16)> {
    let door = free_port()?;
    let outer = format!("PLAINTEXT://127.0.0.1:{{port}},SASL_SSL://127.0.0.1:{door}");
    let kafka = RealKafka::start(&[
        ("listeners", &format!("{outer},CONTROLLER://127.0.0.1:{{controller}}")),
        ("advertised.listeners", &outer),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL"),
        ("ssl.keystore.type", "PEM"),
        ("ssl.keystore.location", &certificates.text("broker.both")),
        ("sasl.enabled.mechanisms", "PLAIN"),
        (
            "listener.name.sasl_ssl.plain.sasl.jaas.config",
            &format!(
                "org.apache.kafka.common.security.plain.PlainLoginModule required user_relay=\"{SASL_PASSWORD}\";"
            ),
        ),
    ])?;
    Ok((kafka, door))
}

fn talkative(database_url: &str, door: u16, certificates: &Certificates) -> Relay {
    Relay::new(database_url, &format!("127.0.0.1:{door}"))
        .with("RELAY_LOG_LEVEL", "trace")
        .with("KAFKA_DEBUG", "all")
        .with("KAFKA_SECURITY_PROTOCOL", "sasl_ssl")
        .with("KAFKA_SASL_MECHANISM", "PLAIN")
        .with("KAFKA_SASL_USERNAME", "relay")
        .with("KAFKA_SASL_PASSWORD", SASL_PASSWORD)
        .with("KAFKA_SASL_OAUTHBEARER_CONFIG", OAUTH_CONFIG)
        .with("KAFKA_SSL_CA_LOCATION", certificates.text("broker.pem"))
        .with("KAFKA_SSL_CERTIFICATE_LOCATION", certificates.text("client.pem"))
        .with("KAFKA_SSL_KEY_LOCATION", certificates.text("client.key"))
        .with("KAFKA_SSL_KEY_PASSWORD", KEY_PASSWORD)
}

async fn every_command_is_among_those_whose_output_is_searched_for_secrets() -> anyhow::Result<()> {
    for command in commands()?.iter().filter(|command| *command != "run") {
        let words: Vec<&str> = command.split(' ').collect();
        ensure!(CALLS.iter().any(|call| call.starts_with(&words)), "CALLS lacks `{command}`");
    }
    Ok(())
}

/// Sends a dead letter with a secret payload and a secret header.
fn produce_dead_letter(kafka: &RealKafka, topic: &str, source: &str) -> anyhow::Result<()> {
    let producer: BaseProducer = kafka.client().create()?;
    let known =
        [("dlq-reason", "permanent"), ("dlq-group", "billing"), ("dlq-source-topic", source), ("token", HEADER)];
    let headers = known
        .iter()
        .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }));
    let record = BaseRecord::to(topic).key("bad").payload(PAYLOAD).headers(headers);
    producer.send(record).map_err(|(error, _)| error)?;
    Ok(producer.flush(SOON)?)
}

async fn until_it_says(relay: &RelayProcess, part: &str) {
    eventually(&format!("the relay says {part}"), SOON * 2, || async {
        relay.log().iter().any(|line| line.contains(part)).then_some(()).ok_or("it has not said so")
    })
    .await;
}

async fn nothing_that_a_day_of_operation_prints_has_a_secret_or_a_payload_in_it(
    database: TestDatabase,
) -> anyhow::Result<()> {
    let certificates = Certificates::make()?;
    let (kafka, door) = guarded(&certificates)?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let user = format!("owner_of_{}", database.name());
    outbox.execute(&format!("create role {user} superuser login password '{DATABASE_PASSWORD}'")).await?;
    let listener = format!("listener_of_{}", database.name());
    outbox.execute(&format!("create role {listener} superuser login password '{WAKE_UP_PASSWORD}'")).await?;
    let server = format!("127.0.0.1:{}/{}", outbox.postgres_port(), database.name());
    let at = |user: &str| format!("postgres://{user}:{DATABASE_PASSWORD}@{server}");
    let dead_letters = format!("{}.billing.dlq", outbox.topic);
    kafka.create_topic(&dead_letters, 1, &[]).await?;
    produce_dead_letter(&kafka, &dead_letters, &outbox.topic)?;
    let relay = talkative(&at(&user), door, &certificates)
        .with("RELAY_TOPIC", &outbox.topic)
        .with("RELAY_WAKE_UP_URL", format!("postgres://{listener}:{WAKE_UP_PASSWORD}@{server}"))
        .with("RELAY_ADMIN_TOKEN", ADMIN_TOKEN);
    let mut printed = Vec::new();

    let day = relay.clone().with("RELAY_ADMIN_ADDRESS", format!("127.0.0.1:{}", free_port()?));
    let running = day.start_ready("by-day").await?;
    outbox
        .execute(&format!(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) \
             select 'order', 'c' || n % 3, 'OrderPlaced', '{{\"card\": \"{PAYLOAD}\"}}'::jsonb, '{{\"token\": \"{HEADER}\"}}'::jsonb from generate_series(1, 50) n \
             union all select 'order', 'bad', 'OrderPlaced', '{{\"card\": \"{PAYLOAD}\"}}'::jsonb, '{{\"token\": [\"{HEADER}\"]}}'::jsonb"
        ))
        .await?;
    outbox.until_published(50).await;
    until_it_says(&running, r#""notice":"event_refused""#).await;
    for call in CALLS {
        let word = |word: &&str| match *word {
            "TOPIC" => outbox.topic.clone(),
            "DEAD_LETTERS" => dead_letters.clone(),
            "CONNECTOR" => concat!(env!("CARGO_MANIFEST_DIR"), "/tests/main/switch/connector.json").to_owned(),
            word => word.to_owned(),
        };
        let asked = call[1..].iter().fold(day.clone(), |relay, argument| relay.argument(&word(argument)));
        let output = asked.output(call[0]).await?;
        // The dead letter has no event id, and the outbox's own table is neither captured nor adopted.
        let may_be_refused = ["bench", "demo", "compare", "capture", "adopt"].contains(&call[0]);
        let is_fine = matches!(output.code, Some(0 | 1)) || may_be_refused && output.code == Some(2);
        ensure!(is_fine, "{call:?}: {output:?}");
        ensure!(
            !(output.stdout.is_empty() && output.stderr.is_empty()) || matches!(call[0], "tail" | "health"),
            "{call:?} prints nothing"
        );
        printed.push((format!("{call:?}"), output.stdout + &output.stderr));
    }
    printed.push(("run".to_owned(), running.log().join("\n")));
    ensure!(running.stop().await? == Some(0), "the relay did not drain");

    // The passwords were rotated without the relay: the brokers' password, and the database user's.
    let locked_out = relay.clone().with("KAFKA_SASL_PASSWORD", ROTATED_PASSWORD).start("no-login")?;
    until_it_says(&locked_out, r#""code":"OR-3002""#).await;
    let shut_out =
        relay.clone().with("DATABASE_URL", at("nobody")).with("RELAY_LOG_FORMAT", "text").start("no-user")?;
    until_it_says(&shut_out, "code=OR-2002").await;
    let keyless = relay.with("KAFKA_SSL_KEY_LOCATION", certificates.text("broker.pem")).output("check").await?;
    printed.push(("no login".to_owned(), locked_out.log().join("\n")));
    printed.push(("no user".to_owned(), shut_out.log().join("\n")));
    printed.push(("no key".to_owned(), keyless.stdout + &keyless.stderr));

    let run = printed.iter().find(|(what, _)| what == "run").map_or(0, |(_, text)| text.len());
    ensure!(run > 50_000, "the relay was not talkative: {run} bytes");
    for (what, text) in &printed {
        for secret in SECRETS {
            let line = text.lines().find(|line| line.contains(secret));
            ensure!(line.is_none(), "{what} prints {secret}: {line:?}");
        }
    }
    Ok(())
}

async fn a_relay_that_crashes_leaves_no_core_with_its_secrets(database: TestDatabase) -> anyhow::Result<()> {
    let relay = Relay::new(&database.url(), &format!("127.0.0.1:{}", free_port()?)).start("core")?;
    relay.wait_for("starting").await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", relay.pid()))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
    let (soft, hard) = (core.split_whitespace().nth(4), core.split_whitespace().nth(5));
    ensure!((soft, hard) == (Some("0"), Some("0")), "{core}");
    relay.stop().await.map(drop)
}

async fn a_relay_that_cannot_start_says_so_as_a_line_of_its_log(database: TestDatabase) -> anyhow::Result<()> {
    let relay = Relay::new(&database.url(), &format!("127.0.0.1:{}", free_port()?)).with("RELAY_SCHEMA", "elsewhere");
    let output = relay.output("run").await?;
    let lines: Vec<serde_json::Value> = output
        .stderr
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .map_err(|_| anyhow::anyhow!("{output:?}"))?;
    let last = lines.last().cloned().unwrap_or_default();
    ensure!(output.code == Some(1) && last["level"] == "ERROR" && last["code"] == "OR-2101", "{last}");
    ensure!(last["notice"] == "failed" && last["reason"].is_string(), "{last}");
    ensure!(last["next_step"].as_str().is_some_and(|step| step.contains("RELAY_SCHEMA=\"public\"")), "{last}");
    let output = relay.with("RELAY_LOG_FORMAT", "text").output("run").await?;
    let code = output.stderr.lines().last().unwrap_or_default();
    ensure!(output.stderr.contains("\nerror: ") && code.starts_with("code: OR-2101 schema-missing"), "{output:?}");
    Ok(())
}
