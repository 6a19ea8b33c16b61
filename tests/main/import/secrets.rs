//! Tests that `import debezium` shows no value that may be a secret.

use super::*;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            only_values_of_known_options_are_shown;
    }
}

/// A key of PEM can stand under many names: of clients, of histories, and of options that are new.
async fn only_values_of_known_options_are_shown() -> anyhow::Result<()> {
    let secret = "-----BEGIN PRIVATE KEY----- hunter-two";
    let unknown = ["ssl.keystore.key", "some.new.option", "transforms.outbox.some.new.option"];
    let mut changes = json!({
        "producer.override.ssl.keystore.key": secret,
        "producer.override.ssl.keystore.certificate.chain": secret,
        "signal.consumer.ssl.keystore.key": secret,
        "schema.history.internal.producer.ssl.keystore.key": secret,
        "database.sslkey": secret,
        "database.other": secret,
        "notification.sink.topic.key": secret,
        "config.providers.vault.param.key": secret,
        "internal.key": secret,
        "value.converter.other.key": secret,
        "database.hostname": "db-1",
        "slot.name": "outbox_slot",
        "producer.override.linger.ms": "7",
    });
    for name in unknown {
        changes[name] = json!(secret);
    }
    changes["value.converter"] = json!("org.apache.kafka.connect.storage.StringConverter");
    changes["value.converter.schemas.enable"] = Value::Null;
    let (imported, file) = Imported::new("connector.json", &options(changes)?)?;
    let (sql, env) = (imported.path("trigger.sql"), imported.path("relay.env"));
    let ignored: Vec<&str> = unknown.iter().flat_map(|name| ["--ignore", name]).collect();
    for (arguments, code) in [
        ([&["--sql", shown(&sql), "--env", shown(&env)], &ignored[..]].concat(), 0),
        ([&["--json"], &ignored[..]].concat(), 0),
        (vec![], 1),
        (vec!["--json"], 1),
    ] {
        let output = run(&Relay::bare(), &file, &arguments).await?;
        ensure!(output.code == Some(code) && !format!("{output:?}").contains("PRIVATE KEY"), "{output:?}");
        for part in
            ["ssl.keystore.key", "internal.key", "value.converter.other.key", "db-1", "outbox_slot", "EventRouter"]
        {
            ensure!(output.stdout.contains(part), "{part:?} is not in {output:?}");
        }
    }
    for path in [&sql, &env] {
        ensure!(!fs::read_to_string(path)?.contains("PRIVATE KEY"), "{}", path.display());
    }
    Ok(())
}
