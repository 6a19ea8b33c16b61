//! Tests TLS to Postgres side by side with psql: each kind of certificate in each mode has the same answer.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::demo::PrivatePostgres;
use libtest_mimic::Trial;
use sqlx::{AssertSqlSafe, Executor};

use lab::kafka::RealKafka;
use lab::{Missing, Outbox, Relay, options_for_tests, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            tls_to_the_database_has_the_answers_of_psql;
        with_kafka:
            a_relay_publishes_large_events_over_tls_and_survives_the_end_of_its_sessions;
    }
}

/// The certificates, made by the commands of Postgres' manual ("Creating Certificates"), in the server's directory. OpenSSL before 3.2 makes
/// certificates of version 1 by them.
const COMMANDS: &[&str] = &[
    // One that signs itself, for localhost.
    "req -new -x509 -days 365 -nodes -text -out self.crt -keyout self.key -subj /CN=localhost",
    "req -new -nodes -text -out root.csr -keyout root.key -subj /CN=root.example.com",
    "x509 -req -in root.csr -text -days 3650 -extfile ca.cnf -signkey root.key -out root.crt",
    "req -new -nodes -text -out server.csr -keyout server.key -subj /CN=localhost",
    "x509 -req -in server.csr -text -days 365 -CA root.crt -CAkey root.key -CAcreateserial -out server.crt",
    // One that names another host in its alternative names, and localhost in its subject.
    "x509 -req -in server.csr -text -days 365 -CA root.crt -CAkey root.key -CAcreateserial -extfile other.cnf -out other.crt",
    // One that is over.
    "x509 -req -in server.csr -text -days -1 -CA root.crt -CAkey root.key -CAcreateserial -out expired.crt",
    // A client's, and a root that signed nothing.
    "req -new -nodes -text -out client.csr -keyout client.key -subj /CN=postgres",
    "x509 -req -in client.csr -text -days 365 -CA root.crt -CAkey root.key -CAcreateserial -out client.crt",
    "req -new -x509 -days 365 -nodes -text -out stranger.crt -keyout stranger.key -subj /CN=stranger",
];

/// The code that the relay reports in place of a connection.
const TLS: &str = "OR-2004";
const LOGIN: &str = "OR-2002";
const REFUSED: &str = "DATABASE_URL";
const CONNECTED: &str = "";

/// The server's certificate, the host, the parameters and the answer. `{}` stands for the directory.
const CASES: &[(&str, &str, &str, &str)] = &[
    ("server", "localhost", "sslmode=disable", CONNECTED),
    ("server", "localhost", "sslmode=allow", CONNECTED),
    ("server", "localhost", "sslmode=prefer", CONNECTED),
    ("server", "localhost", "sslmode=require", CONNECTED),
    ("server", "localhost", "sslmode=require&sslrootcert={}/root.crt", CONNECTED),
    ("server", "localhost", "sslmode=require&sslrootcert={}/stranger.crt", TLS),
    ("server", "localhost", "sslmode=prefer&sslrootcert={}/stranger.crt", CONNECTED),
    ("server", "localhost", "sslmode=verify-ca&sslrootcert={}/root.crt", CONNECTED),
    ("server", "127.0.0.1", "sslmode=verify-ca&sslrootcert={}/root.crt", CONNECTED),
    ("server", "localhost", "sslmode=verify-ca&sslrootcert={}/stranger.crt", TLS),
    ("server", "localhost", "sslmode=verify-full&sslrootcert={}/root.crt", CONNECTED),
    ("server", "127.0.0.1", "sslmode=verify-full&sslrootcert={}/root.crt", TLS),
    ("server", "localhost", "sslmode=verify-full&sslrootcert=system", TLS),
    ("server", "localhost", "sslmode=verify-ca", REFUSED),
    ("server", "localhost", "sslmode=verify-full", REFUSED),
    ("server", "localhost", "sslmode=requires", REFUSED),
    ("other", "localhost", "sslmode=verify-full&sslrootcert={}/root.crt", TLS),
    ("other", "127.0.0.2", "sslmode=verify-full&sslrootcert={}/root.crt", CONNECTED),
    ("other", "localhost", "sslmode=verify-ca&sslrootcert={}/root.crt", CONNECTED),
    ("expired", "localhost", "sslmode=require", CONNECTED),
    ("expired", "localhost", "sslmode=verify-ca&sslrootcert={}/root.crt", TLS),
    ("self", "localhost", "sslmode=require", CONNECTED),
    ("self", "localhost", "sslmode=verify-ca&sslrootcert={}/self.crt", CONNECTED),
    ("self", "localhost", "sslmode=verify-full&sslrootcert={}/self.crt", CONNECTED),
    ("self", "localhost", "sslmode=verify-full&sslrootcert={}/root.crt", TLS),
    ("self", "localhost", "sslmode=require&ssl_min_protocol_version=TLSv1.3", CONNECTED),
    // Without TLS.
    ("", "localhost", "sslmode=prefer", CONNECTED),
    ("", "localhost", "sslmode=require", TLS),
    ("", "localhost", "sslmode=verify-full&sslrootcert={}/root.crt", TLS),
];

/// The cases of a server that takes only TLS with a client's certificate.
const WITH_CLIENT: &[(&str, &str, &str, &str)] = &[
    ("server", "localhost", "sslmode=disable", LOGIN),
    ("server", "localhost", "sslmode=allow&sslcert={}/client.crt&sslkey={}/client.key", CONNECTED),
    ("server", "localhost", "sslmode=require&sslcert={}/client.crt&sslkey={}/client.key", CONNECTED),
    ("server", "localhost", "sslmode=require", LOGIN),
    ("server", "localhost", "sslmode=require&sslcert={}/stranger.crt&sslkey={}/stranger.key", TLS),
];

async fn tls_to_the_database_has_the_answers_of_psql() -> anyhow::Result<()> {
    let mut options = options_for_tests();
    options.settings.push(("listen_addresses".to_owned(), "127.0.0.1,127.0.0.2".to_owned()));
    let postgres = PrivatePostgres::start(options).await?;
    let outbox = Outbox::on(&postgres, "tls").await?;
    make_certificates(&postgres).await?;
    let directory = postgres.directory().to_owned();
    let mut wrong = Vec::new();
    for case in CASES {
        present(&outbox, &directory, case.0).await?;
        wrong.extend(compare(&postgres, case).await?);
    }
    present(&outbox, &directory, "server").await?;
    outbox.execute(&format!("alter system set ssl_ca_file = '{}'", directory.join("root.crt").display())).await?;
    let mut connection = outbox.connect().await?;
    let access: String = sqlx::query_scalar("show hba_file").fetch_one(&mut connection).await?;
    let before = fs::read_to_string(&access)?;
    // The test's own connections are from another address of this host.
    fs::write(
        &access,
        format!("hostssl all all 127.0.0.1/32 cert\n{before}")
            .replace("\nhost ", "\nhost all all 127.0.0.2/32 trust\n#"),
    )?;
    connection.execute("select pg_reload_conf()").await?;
    for case in WITH_CLIENT {
        wrong.extend(compare(&postgres, case).await?);
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    postgres.stop().await;
    Ok(())
}

async fn a_relay_publishes_large_events_over_tls_and_survives_the_end_of_its_sessions(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let postgres = PrivatePostgres::start(options_for_tests()).await?;
    let outbox = Outbox::on(&postgres, "over-tls").await?;
    outbox.create_topic(&kafka).await?;
    make_certificates(&postgres).await?;
    present(&outbox, postgres.directory(), "server").await?;
    let parameters = "sslmode=verify-full&sslrootcert={}/root.crt&keepalives_idle=5&tcp_user_timeout=5000";
    let url = url(&postgres, "localhost", parameters)?;
    let relay = outbox.relay(&kafka).with("DATABASE_URL", url).start_ready("encrypted").await?;
    let large = "insert into event_outbox (entity_type, entity_id, event_type, payload) \
                 select 'order', 'e', 'Counted', jsonb_build_object('n', n, 'pad', repeat('x', 100000)) \
                 from generate_series(1, 200) n";
    outbox.execute(large).await?;
    outbox.until_settled().await;
    let plain = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'outbox-relay encrypted'";
    ensure!(outbox.number(plain).await? > 0 && outbox.number(&format!("{plain} and not ssl")).await? == 0);
    let ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'outbox-relay encrypted'";
    ensure!(outbox.number(ended).await? > 0);
    outbox.write("e", 201, 20).await?;
    outbox.until_settled().await;
    let published = outbox.published_numbers(&kafka).await?;
    let all: Vec<_> = (1..=220).collect();
    ensure!(published.get("e") == Some(&all), "{published:?}");
    ensure!(relay.stop().await? == Some(0));
    // A session ends with its socket, and no session of a relay that is gone stays behind.
    outbox.until_none("no session of the relay is left", &format!("exists ({})", plain.replace("count(*)", "1"))).await;
    postgres.stop().await;
    Ok(())
}

/// Returns a URL of the server with these parameters, in which `{}` stands for its directory.
pub(crate) fn url(postgres: &PrivatePostgres, host: &str, parameters: &str) -> anyhow::Result<String> {
    let url = postgres.url("postgres");
    let (start, _) = url.rsplit_once('@').context("a user")?;
    let parameters = parameters.replace("{}", postgres.directory().to_str().context("a path")?);
    Ok(format!("{start}@{host}:{}/postgres?{parameters}", postgres.port()))
}

/// Makes the certificates as the server's user, to whom the keys must belong.
pub(crate) async fn make_certificates(postgres: &PrivatePostgres) -> anyhow::Result<()> {
    let openssl = Path::new("/usr/bin/openssl");
    if !openssl.exists() {
        return Err(Missing("openssl is not installed".to_owned()).into());
    }
    fs::write(postgres.directory().join("ca.cnf"), "basicConstraints = CA:true\n")?;
    fs::write(postgres.directory().join("other.cnf"), "subjectAltName = DNS:db.example.com,IP:127.0.0.2\n")?;
    for command in COMMANDS {
        let output = postgres.client_program("/usr/bin/openssl", command.split(' ')).await?;
        ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Makes the server present a certificate; an empty name ends TLS.
pub(crate) async fn present(outbox: &Outbox, directory: &Path, name: &str) -> anyhow::Result<()> {
    let mut connection = outbox.connect().await?;
    let key = if name == "self" { "self" } else { "server" };
    let settings = match name {
        "" => vec!["ssl = off".to_owned()],
        name => vec![
            format!("ssl_cert_file = '{}'", directory.join(format!("{name}.crt")).display()),
            format!("ssl_key_file = '{}'", directory.join(format!("{key}.key")).display()),
            "ssl = on".to_owned(),
        ],
    };
    for setting in settings {
        connection.execute(AssertSqlSafe(format!("alter system set {setting}"))).await?;
    }
    connection.execute("select pg_reload_conf()").await?;
    // The postmaster has read the configuration when a new session sees it.
    let expected =
        if name.is_empty() { "off".to_owned() } else { directory.join(format!("{name}.crt")).display().to_string() };
    let shown = if name.is_empty() { "ssl" } else { "ssl_cert_file" };
    lab::eventually("the server has read its configuration", lab::SOON, || async {
        let mut connection = outbox.connect().await.map_err(|error| error.to_string())?;
        let sql = format!("select current_setting('{shown}')");
        let value: String = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut connection)
            .await
            .map_err(|error| error.to_string())?;
        if value == expected { Ok(()) } else { Err(value) }
    })
    .await;
    Ok(())
}

/// Runs `status` and psql with the same URL. Returns what is wrong.
async fn compare(
    postgres: &PrivatePostgres,
    (certificate, host, parameters, expected): &(&str, &str, &str, &str),
) -> anyhow::Result<Option<String>> {
    let url = url(postgres, host, parameters)?;
    let output = Relay::bare().with("DATABASE_URL", &url).with("HOME", "/nonexistent").output("status").await?;
    let as_expected = match *expected {
        CONNECTED => output.code == Some(0),
        code => output.code != Some(0) && output.stderr.contains(code),
    };
    let psql = psql(&url)?;
    let agrees = psql.is_none_or(|connected| connected == (output.code == Some(0)));
    Ok((!as_expected || !agrees).then(|| {
        format!(
            "{certificate} {host} {parameters}: expected {expected:?}, psql {psql:?}, relay {:?} {}",
            output.code, output.stderr
        )
    }))
}

/// Returns whether psql connects; `None` without psql, or for what this version does not know.
fn psql(url: &str) -> anyhow::Result<Option<bool>> {
    let psql = Path::new("/usr/bin/psql");
    if !psql.exists() {
        return Ok(None);
    }
    let output =
        Command::new(psql).env_clear().env("HOME", "/nonexistent").args([url, "-qAtc", "select 1"]).output()?;
    let knows =
        !(url.contains("sslrootcert=system") && String::from_utf8_lossy(&output.stderr).contains("does not exist"));
    Ok(knows.then(|| output.status.success()))
}
