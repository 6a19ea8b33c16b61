//! Tests `import debezium` with names that would break out of comments, quotes and dollar quotes of the SQL.

use super::*;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        alone:
            a_name_with_a_line_end_is_refused;
        with_postgres:
            names_of_any_other_characters_stay_names;
    }
}

const PLACEMENT: &str = "transforms.outbox.table.fields.additional.placement";

async fn a_name_with_a_line_end_is_refused() -> anyhow::Result<()> {
    let hostile = "x\ncommit; drop table accounts; --";
    for (option, value, part) in [
        ("table.include.list", format!("public.{hostile}"), "accepted is SCHEMA.TABLE"),
        ("transforms.outbox.table.field.event.payload", hostile.to_owned(), "the column \"x\\ncommit;"),
        ("transforms.outbox.route.by.field", "a\u{0}b".to_owned(), "the column \"a\\0b\""),
        (PLACEMENT, format!("type:header:{hostile}"), "the alias \"x\\ncommit;"),
        (PLACEMENT, format!("type:envelope:{hostile}"), "the alias \"x\\ncommit;"),
        ("topic.prefix", hostile.to_owned(), "the prefix \"x\\ncommit;"),
        ("transforms.outbox.route.topic.regex", format!("({hostile})"), "the pattern \"(x\\ncommit;"),
    ] {
        let (imported, file) = Imported::new("connector.json", &options(json!({option: value}))?)?;
        let sql = imported.path("trigger.sql");
        let output = run(&Relay::bare(), &file, &["--sql", shown(&sql)]).await?;
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(output.code == Some(1) && said.contains(part) && !sql.exists(), "{option}, {part:?}: {output:?}");
    }
    let (imported, file) = Imported::new("connector.json", &options(json!({}))?)?;
    let sql = imported.path("trigger.sql");
    let table = format!("public.{hostile}");
    let output = run(&Relay::bare(), &file, &["--from-table", &table, "--sql", shown(&sql)]).await?;
    ensure!(output.code == Some(2) && !sql.exists(), "{output:?}");
    Ok(())
}

/// A table, columns, an alias and a prefix whose names contain every quote and placeholder that the SQL uses.
async fn names_of_any_other_characters_stay_names(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    let (table, odd) = ("it's {number}; -- {schema}", "'; $outbox$ $body$ $check$ {json} -- \\");
    let quoted = odd.replace('"', "\"\"");
    outbox
        .execute(&format!(
            "create table public.\"{table}\" (id uuid primary key default gen_random_uuid(), aggregatetype text not null, \
             aggregateid text not null, type text not null, \"{quoted}\" jsonb not null, \"note {quoted}\" text not null)"
        ))
        .await?;
    let connector = options(json!({
        "table.include.list": format!("public.{table}"),
        "topic.prefix": odd,
        "transforms.outbox.table.field.event.payload": odd,
        "transforms.outbox.table.expand.json.payload": "true",
        PLACEMENT: format!("note {odd}:header:{odd},type:envelope:{odd}"),
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "true",
    }))?;
    let (imported, file) = Imported::new("connector.json", &connector)?;
    let sql = imported.path("trigger.sql");
    for arguments in [&[][..], &["--order", "strict"], &["--bulk"]] {
        let arguments: Vec<&str> = [&["--sql", shown(&sql), "--force", "--json"], arguments].concat();
        let output = run(&relay, &file, &arguments).await?;
        ensure!(output.code == Some(0), "{output:?}");
        let trigger = fs::read_to_string(&sql)?;
        apply(&outbox, &trigger).await.with_context(|| trigger.clone())?;
        let insert = format!(
            "insert into public.\"{table}\" (aggregatetype, aggregateid, type, \"{quoted}\", \"note {quoted}\") \
             values ('order', 'o-1', 'Placed', '{{\"n\": 1.5, \"m\": [1]}}', 'kept')"
        );
        outbox.execute(&insert).await?;
        let made = records(&outbox, 1).await?;
        let value: Value = serde_json::from_str(made[0]["value"].as_str().context("a value")?)?;
        ensure!(made.len() == 1 && made[0]["headers"][odd] == "kept", "{made:?}");
        ensure!(value["payload"]["payload"] == json!({"n": 1.5, "m": [1]}), "{value}");
        ensure!(value["payload"][odd] == "Placed" && value["schema"].to_string().contains("$check$"), "{value}");
        let undo = serde_json::from_str::<Value>(&output.stdout)?["undo"].as_str().context("undo")?.to_owned();
        apply(&outbox, &undo).await?;
        clear(&outbox).await?;
    }
    Ok(())
}
