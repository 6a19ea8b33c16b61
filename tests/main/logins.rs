//! Tests each way to log in to a broker, the right credential beside the wrong one, on a real Kafka.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use event_outbox::consumer::{Consumer, Context, Failed};
use lab::demo::{Signal, free_port};
use lab::kafka::{KafkaOptions, RealKafka, signed_url_handler};
use lab::token_server::TokenServer;
use lab::{Outbox, Relay, RelayProcess, SOON, TestDatabase, eventually, trials};
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::secrets::Certificates;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            passwords_and_certificates_let_in_who_has_the_right_one,
            tokens_of_an_openid_provider_are_renewed_while_nothing_is_sent,
            tokens_of_a_login_with_iam_are_renewed_while_nothing_is_sent;
    }
}

const PASSWORD: &str = "right-password";
const WRONG: &str = "wrong-password";

/// How long nothing is sent: three lives of a token.
const SILENCE: Duration = Duration::from_secs(60);
const TOKEN_SECONDS: u32 = 20;

/// A Kafka with one more listener, at `127.0.0.1:door`, for one kind of login.
struct Guarded {
    kafka: RealKafka,
    door: u16,
}

impl Guarded {
    /// Starts the broker. `protocol` is that of the listener GUARDED, and `properties` are its own.
    fn start(protocol: &str, properties: &[(&str, &str)], options: &KafkaOptions<'_>) -> anyhow::Result<Self> {
        let door = free_port()?;
        let outer = format!("PLAINTEXT://127.0.0.1:{{port}},GUARDED://127.0.0.1:{door}");
        let listeners = format!("{outer},CONTROLLER://127.0.0.1:{{controller}}");
        let map = format!("PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,GUARDED:{protocol}");
        let mut all: Vec<(&str, &str)> =
            vec![("listeners", &listeners), ("advertised.listeners", &outer), ("listener.security.protocol.map", &map)];
        all.extend(properties);
        let kafka = RealKafka::start_as(&KafkaOptions { properties: &all, ..options.clone() })?;
        Ok(Self { kafka, door })
    }

    fn relay(&self, database: &TestDatabase, outbox: &Outbox) -> Relay {
        Relay::new(&database.url(), &format!("127.0.0.1:{}", self.door)).with("RELAY_TOPIC", &outbox.topic)
    }
}

fn with_all(relay: Relay, variables: &[(&str, &str)]) -> Relay {
    variables.iter().fold(relay, |relay, (name, value)| relay.with(name, value))
}

/// Expects that the relay publishes an event, and then stops without a warning.
async fn publishes(relay: &Relay, outbox: &Outbox, entity: &str) -> anyhow::Result<()> {
    let running = relay.start_ready(entity).await?;
    outbox.write(entity, 1, 5).await?;
    outbox.until_settled_of(entity).await;
    ensure!(running.stop().await? == Some(0), "the relay did not drain");
    Ok(())
}

/// Returns the same relay with everything in its log that can be there.
fn talkative(relay: &Relay) -> Relay {
    relay.clone().with("RELAY_LOG_LEVEL", "trace").with("KAFKA_DEBUG", "all")
}

/// Expects no secret in the log: neither a password nor a token, which begins like every JWT or like the signed URL in base64.
fn keeps_secrets(relay: &RelayProcess) -> anyhow::Result<()> {
    let log = relay.log();
    for secret in [PASSWORD, WRONG, "eyJ", "aHR0cHM6Ly9rYWZr"] {
        let line = log.iter().find(|line| line.contains(secret));
        ensure!(line.is_none(), "{secret} is in {line:?}");
    }
    Ok(())
}

/// Expects that the relay reports this code, and no secret.
async fn is_refused(relay: &Relay, code: &str) -> anyhow::Result<()> {
    let running = talkative(relay).start("refused")?;
    running.wait_for(code).await;
    keeps_secrets(&running)?;
    ensure!(running.stop().await? == Some(0), "the relay did not stop");
    Ok(())
}

/// Expects that a relay which is refused with this code publishes as soon as its files are right.
async fn is_let_in_after_a_rotation(
    relay: &Relay,
    outbox: &Outbox,
    code: &str,
    rotate: impl FnOnce() -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let running = relay.start("rotates")?;
    running.wait_for(code).await;
    outbox.write(code, 1, 5).await?;
    rotate()?;
    running.signal(Signal::SIGHUP)?;
    let line = running.wait_for("reloaded").await;
    ensure!(line["changed"] == "login and certificates of Kafka", "{line}");
    outbox.until_settled_of(code).await;
    ensure!(running.stop().await? == Some(0), "the relay did not drain");
    Ok(())
}

async fn passwords_and_certificates_let_in_who_has_the_right_one(database: TestDatabase) -> anyhow::Result<()> {
    let certificates = Certificates::make()?;
    certificates.plain_client("member")?;
    certificates.plain_client("stranger")?;
    let outbox = Outbox::from_database(&database);
    let (both, member) = (certificates.text("broker.both"), certificates.text("member.pem"));
    let tls = [("ssl.keystore.type", "PEM"), ("ssl.keystore.location", both.as_str())];
    let plain = format!("org.apache.kafka.common.security.plain.PlainLoginModule required user_relay=\"{PASSWORD}\";");
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let add = format!("SCRAM-SHA-512=[name=relay,password={PASSWORD}]");
    let authority = certificates.text("broker.pem");
    let encrypted = [("KAFKA_SSL_CA_LOCATION", authority.as_str())];

    let passwords = [
        ("PLAIN", "listener.name.guarded.plain.sasl.jaas.config", plain.as_str()),
        ("SCRAM-SHA-512", "listener.name.guarded.scram-sha-512.sasl.jaas.config", scram),
    ];
    for (mechanism, property, module) in passwords {
        let mut properties = tls.to_vec();
        properties.extend([("sasl.enabled.mechanisms", mechanism), (property, module)]);
        let options = KafkaOptions { format: &["--add-scram", &add], ..KafkaOptions::default() };
        let guarded = Guarded::start("SASL_SSL", &properties, &options)?;
        outbox.create_topic(&guarded.kafka).await?;
        let login = [
            ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl"),
            ("KAFKA_SASL_MECHANISM", mechanism),
            ("KAFKA_SASL_USERNAME", "relay"),
        ];
        let relay = with_all(with_all(guarded.relay(&database, &outbox), &encrypted), &login);
        publishes(&relay.clone().with("KAFKA_SASL_PASSWORD", PASSWORD), &outbox, mechanism).await?;
        is_refused(&relay.clone().with("KAFKA_SASL_PASSWORD", WRONG), "OR-3002").await?;
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), WRONG)?;
        let relay = relay.with("KAFKA_SASL_PASSWORD_FILE", file.path().display());
        is_let_in_after_a_rotation(&relay, &outbox, "OR-3002", || fs::write(file.path(), PASSWORD)).await?;
    }

    let mut properties = tls.to_vec();
    properties.extend([
        ("ssl.client.auth", "required"),
        ("ssl.truststore.type", "PEM"),
        ("ssl.truststore.location", member.as_str()),
    ]);
    let guarded = Guarded::start("SSL", &properties, &KafkaOptions::default())?;
    outbox.create_topic(&guarded.kafka).await?;
    let relay = with_all(guarded.relay(&database, &outbox), &encrypted).with("KAFKA_SECURITY_PROTOCOL", "ssl");
    let as_client = |name: &str| {
        relay
            .clone()
            .with("KAFKA_SSL_CERTIFICATE_LOCATION", certificates.text(&format!("{name}.pem")))
            .with("KAFKA_SSL_KEY_LOCATION", certificates.text(&format!("{name}.key")))
    };
    publishes(&as_client("member"), &outbox, "certificate").await?;
    is_refused(&as_client("stranger"), "OR-3003").await?;
    let copy = |from: &str, to: &str| {
        let one = |end: &str| {
            fs::copy(certificates.text(&format!("{from}.{end}")), certificates.text(&format!("{to}.{end}"))).map(drop)
        };
        one("pem").and_then(|()| one("key"))
    };
    copy("stranger", "renewed")?;
    is_let_in_after_a_rotation(&as_client("renewed"), &outbox, "OR-3003", || copy("member", "renewed")).await?;
    is_refused(&relay, "OR-3003").await
}

/// A consumer that counts the records that it gets.
struct Counter {
    seen: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), event_outbox::consumer::ConsumerError>>,
}

impl Counter {
    fn start(consumer: Consumer) -> Self {
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&seen);
        let count = move |_: Context| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Ok::<(), Failed>(()) }
        };
        let (stop, stopped) = oneshot::channel();
        let running = consumer.on_raw("Counted", 1.., count).run(async move {
            let _ = stopped.await;
        });
        Self { seen, stop, task: tokio::spawn(running) }
    }

    async fn until(&self, events: usize) {
        eventually("the consumer has the events", SOON * 2, || async {
            let seen = self.seen.load(Ordering::Relaxed);
            if seen >= events { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    async fn stop(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        Ok(self.task.await??)
    }
}

/// Publishes events before and after a silence, with a relay and a consumer that log in with tokens. `is_over` tells that the silence is long
/// enough. No token may run out meanwhile, because each would be an outage in the log.
async fn outlives_its_tokens(
    relay: &Relay,
    consumer: Consumer,
    outbox: &Outbox,
    is_over: impl Fn() -> bool,
) -> anyhow::Result<()> {
    let running = relay.start_ready("tokens").await?;
    let counter = Counter::start(consumer.topic(&outbox.topic));
    outbox.write("before", 1, 5).await?;
    outbox.until_settled().await;
    counter.until(5).await;
    eventually("the silence is over", SILENCE * 2, || async { if is_over() { Ok(()) } else { Err(()) } }).await;
    outbox.write("after", 1, 5).await?;
    outbox.until_settled().await;
    counter.until(10).await;
    counter.stop().await?;
    // The tests' only broker is a finding of the check.
    let is_bad = |line: &&String| {
        (line.contains(r#""level":"WARN""#) || line.contains(r#""level":"ERROR""#)) && !line.contains("check_finding")
    };
    let log = running.log();
    let bad = log.iter().find(is_bad).cloned();
    ensure!(bad.is_none(), "{bad:?}");
    keeps_secrets(&running)?;
    ensure!(running.stop().await? == Some(0), "the relay did not drain");
    Ok(())
}

/// Runs the commands that use Kafka.
async fn commands_work(relay: &Relay, topic: &str) -> anyhow::Result<()> {
    let commands: &[(&str, &[&str])] = &[
        ("check", &[]),
        ("verify", &[]),
        ("tail", &["--for", "1s"]),
        ("explain", &["--entity", "after"]),
        ("dlq", &["list", topic]),
        ("replay", &["--entity", "after", "--topic", topic, "--reason", "a test", "--yes"]),
    ];
    for (command, arguments) in commands {
        let asked = arguments.iter().fold(relay.clone(), |relay, argument| relay.argument(argument));
        let output = asked.output(command).await?;
        ensure!(output.code == Some(0), "{command} {arguments:?}: {output:?}");
    }
    Ok(())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

async fn tokens_of_an_openid_provider_are_renewed_while_nothing_is_sent(database: TestDatabase) -> anyhow::Result<()> {
    let mut tokens = TokenServer::start(PASSWORD, TOKEN_SECONDS).await?;
    let keys = tokens.keys_url();
    let allowed = format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={keys}");
    let options = KafkaOptions { java: &[&allowed], ..KafkaOptions::default() };
    let guarded = Guarded::start(
        "SASL_PLAINTEXT",
        &[
            ("sasl.enabled.mechanisms", "OAUTHBEARER"),
            (
                "listener.name.guarded.oauthbearer.sasl.jaas.config",
                "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;",
            ),
            (
                "listener.name.guarded.oauthbearer.sasl.server.callback.handler.class",
                "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler",
            ),
            ("listener.name.guarded.sasl.oauthbearer.jwks.endpoint.url", &keys),
            // A session ends with its token.
            ("listener.name.guarded.oauthbearer.connections.max.reauth.ms", "3600000"),
        ],
        &options,
    )?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&guarded.kafka).await?;
    let url = tokens.token_url();
    let login = [
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", "OAUTHBEARER"),
        ("sasl.oauthbearer.method", "oidc"),
        ("sasl.oauthbearer.client.id", "relay"),
        ("sasl.oauthbearer.token.endpoint.url", url.as_str()),
        ("sasl.oauthbearer.scope", "kafka"),
        ("sasl.oauthbearer.extensions", "logicalCluster=lkc-1,identityPoolId=pool-1"),
    ];
    let variable = |name: &str| format!("KAFKA_{}", name.replace('.', "_").to_uppercase());
    let relay =
        login.iter().fold(guarded.relay(&database, &outbox), |relay, (name, value)| relay.with(&variable(name), value));
    let right = relay.clone().with("KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET", PASSWORD);
    let consumer = Consumer::new("counter", database.pool(4))
        .kafka("bootstrap.servers", format!("127.0.0.1:{}", guarded.door))
        .kafka("sasl.oauthbearer.client.secret", PASSWORD);
    let consumer = login.iter().fold(consumer, |consumer, (name, value)| consumer.kafka(*name, *value));

    let began = now_ms();
    let last = || tokens.answers("token").last().copied().unwrap_or_default();
    outlives_its_tokens(&right, consumer, &outbox, || last() > began + SILENCE.as_millis() as u64).await?;
    commands_work(&right, &outbox.topic).await?;

    is_refused(&relay.clone().with("KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET", WRONG), "OR-3022").await?;
    ensure!(!tokens.answers("refused").is_empty(), "the token server was not asked");
    tokens.stop();
    let waiting = talkative(&right).start("waiting")?;
    waiting.wait_for("OR-3021").await;
    let check = right.clone().argument("--json").output("check").await?;
    ensure!(check.code == Some(1) && check.stdout.contains("token-server-away"), "{check:?}");
    outbox.write("late", 1, 5).await?;
    tokens.start_again().await?;
    outbox.until_settled().await;
    keeps_secrets(&waiting)?;
    ensure!(waiting.stop().await? == Some(0), "the relay did not drain");
    publishes(&right.clone().with("RELAY_DELIVERY", "exactly_once"), &outbox, "exactly-once").await?;

    // The same provider behind HTTPS, with a certificate that only its own file vouches for.
    let certificates = Certificates::make()?;
    let files = [certificates.text("broker.key"), certificates.text("broker.pem")];
    let encrypted = tokens.with_https(files.each_ref().map(String::as_str)).await?;
    let relay = right.with("KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL", encrypted.token_url());
    is_refused(&relay, "OR-3021").await?;
    publishes(&relay.with("KAFKA_HTTPS_CA_LOCATION", &files[1]), &outbox, "https").await
}

/// Gives out credentials for a container that end in `TOKEN_SECONDS`, as ECS does.
async fn container_endpoint(key: &'static str) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/credentials", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 2048];
            let _ = stream.read(&mut request).await;
            let end = chrono::DateTime::from_timestamp_millis(now_ms() as i64 + i64::from(TOKEN_SECONDS) * 1000);
            let end = end.unwrap_or_default().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
            let body = format!(
                r#"{{"AccessKeyId":"{key}","SecretAccessKey":"{PASSWORD}","Token":"{WRONG}","Expiration":"{end}"}}"#
            );
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes()).await;
        }
    });
    Ok(url)
}

async fn tokens_of_a_login_with_iam_are_renewed_while_nothing_is_sent(database: TestDatabase) -> anyhow::Result<()> {
    const KEY: &str = "ASIARIGHT";
    let classes = tempfile::tempdir()?;
    let handler = signed_url_handler(classes.path())?;
    let (key, seconds) = (format!("-Dsigned.url.key={KEY}"), format!("-Dsigned.url.seconds={TOKEN_SECONDS}"));
    let options =
        KafkaOptions { java: &[&key, &seconds], classes: Some(Path::new(classes.path())), ..KafkaOptions::default() };
    let guarded = Guarded::start(
        "SASL_PLAINTEXT",
        &[
            ("sasl.enabled.mechanisms", "OAUTHBEARER"),
            (
                "listener.name.guarded.oauthbearer.sasl.jaas.config",
                "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;",
            ),
            ("listener.name.guarded.oauthbearer.sasl.server.callback.handler.class", handler),
            ("listener.name.guarded.oauthbearer.connections.max.reauth.ms", "3600000"),
        ],
        &options,
    )?;
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&guarded.kafka).await?;
    let relay = guarded
        .relay(&database, &outbox)
        .with("KAFKA_SECURITY_PROTOCOL", "sasl_plaintext")
        .with("KAFKA_SASL_MECHANISM", "AWS_MSK_IAM")
        .with("AWS_REGION", "eu-central-1");
    let url = container_endpoint(KEY).await?;
    let right = relay.clone().with("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url);
    let bootstrap = format!("127.0.0.1:{}", guarded.door);
    let environment = [("AWS_REGION", "eu-central-1"), ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str())];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    let consumer = Consumer::new("counter", database.pool(4))
        .kafka("bootstrap.servers", &bootstrap)
        .kafka("security.protocol", "sasl_plaintext")
        .msk_iam(event_outbox::msk_iam::MskIam::new(&bootstrap, environment)?);
    let began = now_ms();
    outlives_its_tokens(&right, consumer, &outbox, || now_ms() > began + SILENCE.as_millis() as u64).await?;
    commands_work(&right, &outbox.topic).await?;

    let wrong = relay.clone().with("AWS_ACCESS_KEY_ID", "AKIAWRONG").with("AWS_SECRET_ACCESS_KEY", WRONG);
    is_refused(&wrong, "OR-3002").await?;
    is_refused(&relay.clone().with("AWS_EC2_METADATA_DISABLED", "true"), "OR-3022").await?;
    let nobody = format!("http://127.0.0.1:{}/", free_port()?);
    is_refused(&relay.with("AWS_CONTAINER_CREDENTIALS_FULL_URI", nobody), "OR-3021").await?;

    // The relay cannot create the topic of exactly-once with this login, and says which one it needs.
    let running = talkative(&right.with("RELAY_DELIVERY", "exactly_once")).start("exactly-once")?;
    outbox.write("once", 1, 5).await?;
    let line = running.wait_for("OR-3018").await.to_string();
    let (_, name) = line.split_once("outbox-relay.").context("no topic is named")?;
    let name = format!("outbox-relay.{}", name.chars().take_while(char::is_ascii_hexdigit).collect::<String>());
    guarded.kafka.create_topic(&name, 16, &[]).await?;
    outbox.until_settled().await;
    keeps_secrets(&running)?;
    ensure!(running.stop().await? == Some(0), "the relay did not drain");
    Ok(())
}
