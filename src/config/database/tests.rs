//! Tests forms of URL: each has its value or its refusal, and no refusal repeats a password.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

fn env(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn read(url: &str) -> DatabaseSettings {
    parse(url, &env(&[])).unwrap_or_else(|problem| panic!("{url}: {problem}"))
}

fn problem(url: &str) -> String {
    parse(url, &env(&[])).err().unwrap_or_else(|| panic!("accepted: {url}"))
}

fn password(settings: &DatabaseSettings, server: usize) -> Option<String> {
    settings.servers[server].password.as_ref().map(|password| password.expose_secret().to_owned())
}

#[test]
fn each_form_of_url_names_its_servers_and_its_database() {
    for (url, target) in [
        ("postgres://relay:s3cret@db.internal:5432/app", "db.internal:5432/app"),
        ("postgresql://relay@db/app?sslmode=require&application_name=x", "db:5432/app"),
        ("postgres://relay:p%40ss%2Fword@db_1", "db_1:5432/relay"),
        ("postgres://relay:p@ss@db/app", "db:5432/app"),
        ("postgres://relay@h1:5432,h2:5433/app", "h1:5432,h2:5433/app"),
        ("postgres://relay@h1,h2/app?port=6432", "h1:6432,h2:6432/app"),
        ("postgres://relay@h1:1,h2,h3:3/app", "h1:1,h2:5432,h3:3/app"),
        ("postgres://relay@/app?host=h1,h2&port=1,2", "h1:1,h2:2/app"),
        ("postgres://relay@[::1]:5433/app", "[::1]:5433/app"),
        ("postgres://relay@[::1],[fe80::1%25eth0]:7/app", "[::1]:5432,[fe80::1%eth0]:7/app"),
        ("postgres://relay@127.0.0.1/app", "127.0.0.1:5432/app"),
        ("postgres:///app?host=/var/run/postgresql", "/var/run/postgresql:5432/app"),
        ("postgres://relay@%2Fvar%2Frun%2Fpostgresql:5433/app", "/var/run/postgresql:5433/app"),
        ("postgres://relay@/app?host=/run/a,h2", "/run/a:5432,h2:5432/app"),
        ("postgres://relay@db/?dbname=app", "db:5432/app"),
        ("postgres://relay@db/a%20b", "db:5432/a b"),
        ("postgres://relay@db?dbname=app", "db:5432/app"),
        ("postgres://?host=db&user=relay", "db:5432/relay"),
        ("postgres://relay@db/app?hostaddr=10.0.0.1", "db:5432/app"),
        ("postgres://relay@/app?hostaddr=10.0.0.1", "10.0.0.1:5432/app"),
        ("postgres://relay@db/app?options[search_path]=shop&statement-cache-capacity=0", "db:5432/app"),
        ("postgres://relay@db/app?options=-c%20geqo%3Doff%20--jit=off", "db:5432/app"),
        ("postgres://relay@db/app?channel_binding=prefer&gssencmode=disable&sslsni=0", "db:5432/app"),
        ("postgres://relay@db/app?ssl=true", "db:5432/app"),
    ] {
        assert_eq!(read(url).target(), target, "{url}");
    }
}

#[test]
fn each_mistake_is_named() {
    for (url, part) in [
        ("mysql://u:hunter2@h/d", "postgres://"),
        ("host=h password=hunter2", "postgres://"),
        ("", "postgres://"),
        ("postgres://u:hunter2@/d", "set PGHOST"),
        ("postgres:///d", "host is empty"),
        ("postgres://u:hunter2@my host/d", "host"),
        ("postgres://u:hunter2@-h-/d", "host"),
        ("postgres://u:hunter2@h..x/d", "host"),
        ("postgres://u:hunter2@h1,,h2/d", "host is empty"),
        ("postgres://u:hunter2@[::1/d", "host"),
        ("postgres://u:hunter2@[h]/d", "host"),
        ("postgres://u:hunter2@[::1]x/d", "host"),
        ("postgres://u:hunter2@h:99999/d", "port"),
        ("postgres://u:hunter2@h:0/d", "port"),
        ("postgres://u:hunter2@h:abc/d", "port"),
        ("postgres://u:hunter2@h1:1,h2:hunter2/d", "port"),
        ("postgres://u:hunter2@h1,h2,h3/d?port=1,2", "3 hosts and 2 ports"),
        ("postgres://u:hunter2@h1,h2/d?hostaddr=10.0.0.1", "2 hosts and 1 addresses"),
        ("postgres://u:hun/ter2@h/d", "percent-encoded"),
        ("postgres://u:1/hunter2@h/d", "percent-encoded"),
        ("postgres://u:1?hunter2@h/d", "percent-encoded"),
        ("postgres://u:1?hunter2&x=@h/d", "percent-encoded"),
        ("postgres://u:1#hunter2@h/d", "percent-encoded"),
        ("postgres://u:hunter2%@h/d", "%"),
        ("postgres://u:hunter2%ff@h/d", "%"),
        ("postgres://u:hunter2%00@h/d", "%"),
        ("postgres://u:hunter2%+1@h/d", "%"),
        ("postgres://u:hunter2@h/d?sslmod=require", "did you mean sslmode?"),
        ("postgres://u:hunter2@h/d?colour=red", "accepted are host, hostaddr, port"),
        ("postgres://u:hunter2@h/d?Hunter2=red", "one of its parameters is unknown"),
        ("postgres://u:hunter2@h/d?sslmode", "name=value"),
        ("postgres://u:hunter2@h/d?sslmode=hunter2", "disable, allow, prefer, require, verify-ca, verify-full"),
        ("postgres://u:hunter2@h/d?target_session_attrs=master", "any, read-write, read-only, primary"),
        ("postgres://u:hunter2@h/d?channel_binding=require", "disable, prefer: the relay has no channel binding"),
        ("postgres://u:hunter2@h/d?gssencmode=require", "GSSAPI"),
        ("postgres://u:hunter2@h/d?sslnegotiation=direct", "postgres"),
        ("postgres://u:hunter2@h/d?connect_timeout=5s", "connect_timeout is not a number"),
        ("postgres://u:hunter2@h/d?keepalives=yes", "keepalives is not one of 0, 1"),
        ("postgres://u:hunter2@h/d?hostaddr=h", "hostaddr"),
        ("postgres://u:hunter2@h/d?port=70000", "port"),
        ("postgres://u:hunter2@h/d?options=geqo", "-c name=value"),
        ("postgres://u:hunter2@h/d?statement-cache-capacity=x", "statement-cache-capacity"),
        ("postgres://u:hunter2@h/d?sslrootcert=/nonexistent/ca.pem", "/nonexistent/ca.pem"),
        ("postgres://u:hunter2@h/d?sslkey=/nonexistent/key.pem", "sslkey"),
        ("postgres://u:hunter2@h/d?sslmode=verify-full", "sslrootcert=system"),
        ("postgres://u:hunter2@h/d?sslrootcert=system&sslmode=require", "verify-full"),
        ("postgres://u@h/d?passfile=/nonexistent/pgpass", "/nonexistent/pgpass"),
        ("postgres://u@h/d?service=shop", "PGSERVICEFILE"),
    ] {
        let problem = problem(url);
        assert!(problem.contains(part), "{url}: {problem}");
        assert!(!problem.contains("hunter2") && !problem.contains("ter2"), "{url}: {problem}");
    }
}

#[test]
fn everything_wrong_with_one_url_is_said_at_once() {
    let problem = problem("postgres://u@h:0/d?sslmode=x&sslmod=red");
    assert_eq!(problem.matches(';').count(), 2, "{problem}");
}

#[test]
fn the_target_names_neither_user_nor_password() {
    let settings = read("postgres://alice:hunter2@db:5433/app?password=hunter3");
    assert_eq!(settings.target(), "db:5433/app");
    assert_eq!(password(&settings, 0).as_deref(), Some("hunter3"), "the parameter is stronger, as with libpq");
    let debug = format!("{settings:?}");
    assert!(!debug.contains("hunter") && !debug.contains("alice"), "{debug}");
}

#[test]
fn parameters_have_their_effect() {
    let settings = read(
        "postgres://u@h/d?connect_timeout=3&target_session_attrs=primary&load_balance_hosts=random&keepalives_idle=7&\
         keepalives_interval=8&keepalives_count=9&tcp_user_timeout=4000&sslmode=allow&ssl_min_protocol_version=TLSv1.3",
    );
    assert_eq!(settings.connect_timeout, Duration::from_secs(3));
    assert_eq!(settings.target_session, Some(TargetSession::Primary));
    assert!(settings.in_random_order);
    let socket = SocketSettings {
        no_keepalives: false,
        idle: Some(Duration::from_secs(7)),
        interval: Some(Duration::from_secs(8)),
        count: Some(9),
        user_timeout: Some(Duration::from_secs(4)),
    };
    assert_eq!(settings.socket, socket);
    assert_eq!((settings.tls.mode, settings.tls.versions.0.as_str()), (TlsMode::Allow, "TLSv1.3"));
    let plain = read("postgres://u@h/d");
    assert_eq!(
        (plain.tls.mode, plain.socket, plain.target_session),
        (TlsMode::Prefer, SocketSettings::default(), None)
    );
    let system = read("postgres://u@h/d?sslrootcert=system").tls;
    assert!(system.mode == TlsMode::VerifyFull && matches!(system.roots, Some(Roots::System)));
    let options = read("postgres://u@h/d?options=-c%20a%3Db%5C%20c%20--d=e&options[f]=g").options;
    assert_eq!(options.get_options(), Some(r"-c a=b\ c -c d=e -c f=g"));
}

#[test]
fn variables_fill_what_the_url_leaves_out() {
    let variables = env(&[
        ("PGHOST", "h1,h2"),
        ("PGPORT", "1,2"),
        ("PGDATABASE", "app"),
        ("PGUSER", "relay"),
        ("PGPASSWORD", "hunter2"),
        ("PGSSLMODE", "disable"),
        ("PGTARGETSESSIONATTRS", "read-write"),
        ("PGCONNECT_TIMEOUT", "4"),
    ]);
    let settings = parse("postgres://", &variables).unwrap();
    assert_eq!(settings.target(), "h1:1,h2:2/app");
    assert_eq!(settings.options.get_username(), "relay");
    assert_eq!(password(&settings, 1).as_deref(), Some("hunter2"));
    assert_eq!((settings.tls.mode, settings.target_session), (TlsMode::Disable, Some(TargetSession::ReadWrite)));
    assert_eq!(settings.connect_timeout, Duration::from_secs(4));
    let own = parse("postgres://me:mine@own:9/other?sslmode=prefer", &variables).unwrap();
    assert_eq!((own.target().as_str(), own.options.get_username()), ("own:9/other", "me"));
    assert_eq!((password(&own, 0).as_deref(), own.tls.mode), (Some("mine"), TlsMode::Prefer));
}

#[test]
fn a_wrong_variable_is_refused_under_its_name() {
    let problem = parse("postgres://h/d", &env(&[("PGSSLMODE", "requires")])).err().unwrap();
    assert!(problem.starts_with("the variable PGSSLMODE is not one of disable, allow"), "{problem}");
}

#[test]
fn the_password_file_knows_each_server() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("pgpass");
    fs::write(&file, "h1:5432:app:relay:one\n*:5433:*:*:two\nlocalhost:7:*:*:socket\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let url = format!("postgres://relay@h1,h2:5433,h3/app?passfile={}", file.display());
    let settings = read(&url);
    let found: Vec<_> = (0..3).map(|server| password(&settings, server)).collect();
    assert_eq!(found, [Some("one".to_owned()), Some("two".to_owned()), None]);
    let variable = env(&[("PGPASSFILE", file.to_str().unwrap())]);
    let settings = parse("postgres://relay@/app?host=/run/pg&port=7", &variable).unwrap();
    assert_eq!(password(&settings, 0).as_deref(), Some("socket"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(problem(&url).contains("chmod 600"), "{}", problem(&url));
}

#[test]
fn the_password_file_in_the_home_directory_is_found() {
    let home = tempfile::TempDir::new().unwrap();
    let file = home.path().join(".pgpass");
    fs::write(&file, "*:*:*:*:mine\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let home = env(&[("HOME", home.path().to_str().unwrap())]);
    assert_eq!(password(&parse("postgres://u@h/d", &home).unwrap(), 0).as_deref(), Some("mine"));
    assert_eq!(password(&parse("postgres://u:own@h/d", &home).unwrap(), 0).as_deref(), Some("own"));
}

#[test]
fn a_service_is_weaker_than_the_url_and_stronger_than_the_variables() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("services");
    fs::write(&file, "[other]\nhost=no\n[shop]\nhost=h1,h2\nport=6432\ndbname=app\nuser=relay\nsslmode=disable\n")
        .unwrap();
    let mut variables =
        env(&[("PGSERVICEFILE", file.to_str().unwrap()), ("PGDATABASE", "env"), ("PGPASSWORD", "hunter2")]);
    let settings = parse("postgres:///own?service=shop", &variables).unwrap();
    assert_eq!((settings.target().as_str(), settings.tls.mode), ("h1:6432,h2:6432/own", TlsMode::Disable));
    assert_eq!(password(&settings, 0).as_deref(), Some("hunter2"));
    variables.insert("PGSERVICE".to_owned(), "shop".to_owned());
    assert_eq!(parse("postgres://", &variables).unwrap().target(), "h1:6432,h2:6432/app");
    variables.insert("PGSERVICE".to_owned(), "none".to_owned());
    assert!(parse("postgres://", &variables).err().unwrap().contains("no service file defines"));
}

/// Encodes every byte that is no letter or digit.
fn encode(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02x}"),
    };
    text.bytes().map(encoded).collect()
}

proptest! {
    #[test]
    fn any_text_survives_percent_encoding(
        user in "[^\0]{1,20}", secret in "[^\0]{1,20}", database in "[^\0]{1,20}", option in "[^\0]{0,20}",
    ) {
        let url = format!(
            "postgres://{}:{}@h/{}?options[a.b]={}", encode(&user), encode(&secret), encode(&database), encode(&option)
        );
        let settings = read(&url);
        prop_assert_eq!(settings.options.get_username(), &user);
        prop_assert_eq!(password(&settings, 0), Some(secret));
        prop_assert_eq!(settings.options.get_database(), Some(database.as_str()));
        prop_assert_eq!(settings.target(), format!("h:5432/{database}"));
    }

    #[test]
    fn no_refusal_repeats_the_password(url in "postgres://u:hunter2[/@:?#%&=\\[\\],a1 ]{0,12}@?h?[:,/?&=a0]{0,6}") {
        if let Err(problem) = parse(&url, &env(&[])) {
            prop_assert!(!problem.contains("hunter2"), "{}: {}", url, problem);
        }
    }
}
