//! docs/failures.md, rendered from the tables. `OUTBOX_RELAY_BLESS=1 cargo test --lib failures_page` writes it.

use std::fmt::Write;
use std::path::Path;

use super::{Class, Fault, kafka, postgres};

const HEAD: &str = "\
# Failures

Every error code of Kafka (as librdkafka tells it) and of Postgres (SQLSTATE) that a relay can be told, what it means, and what to do.
Rendered from `src/fault`; a test compares it, and another makes sure that no code is left out. The log, `check` and the command line
name each by its code of the [runbook](runbook.md).

| class | what the relay does | costs an attempt |
|---|---|---|
| outage | waits and does the same again; while the brokers are away no transaction is open | no |
| destination | holds the rows of this topic, all others go on; the topic is asked for again until it can be written | no |
| row | by `RELAY_ON_POISON`: `dead_letter` makes the row DEAD, `hold_entity` keeps its entity's events behind it | one |
| operator | as for an outage, but it does not heal by itself: somebody has to change something | no |

What may heal is tried again with back-off (`src/relay/pace.rs`): a worker after 100 ms, twice as long each time, up to 2 s, each pause
shortened by chance by up to half, so that relays do not come back in step; the first success starts it over. The cluster itself is asked
every 0.2 to 1 s while it is away (`src/sink/broker.rs`). A topic that does not exist is asked for every second, one that
exists and refuses records after 2 s, then twice as long, up to 60 s (`src/sink/topics.rs`). No attempt is counted and nothing is given
up, however long it takes.

A record that got no answer, or one that is not in the class `row` or `destination`, may have been written all the same. It is never
called failed: its row stays PENDING and is sent again, in order, with all that came after it.
";

fn word(class: Class) -> &'static str {
    match class {
        Class::Outage => "outage",
        Class::Destination => "destination",
        Class::Row => "row",
        Class::Operator => "operator",
    }
}

fn table(page: &mut String, title: &str, mut rows: Vec<(Fault, String, &str)>) {
    rows.sort_by_key(|(fault, ..)| fault.class);
    let _ =
        write!(page, "\n## {title}\n\n| class | runbook | told as | meaning | what to do |\n|---|---|---|---|---|\n");
    for (Fault { class, code, next_step }, told_as, meaning) in rows {
        let anchor = format!("{code}-{}", code.name()).to_lowercase();
        let _ =
            writeln!(page, "| {} | [{code}](runbook.md#{anchor}) | {told_as} | {meaning} | {next_step} |", word(class));
    }
}

fn quoted<T: ToString>(codes: &[T]) -> String {
    codes.iter().map(|code| format!("`{}`", code.to_string())).collect::<Vec<_>>().join(", ")
}

fn render() -> String {
    let mut page = HEAD.to_owned();
    let rows = kafka::TABLE.iter().map(|entry| {
        let codes: Vec<_> = entry.codes.iter().map(|code| format!("{code:?}")).collect();
        (entry.fault, quoted(&codes), entry.meaning)
    });
    table(&mut page, "Kafka", rows.collect());
    page.push_str("\nCodes are named as in rdkafka's `RDKafkaErrorCode`, which is how the log names them.\n");
    let rows = postgres::TABLE.iter().map(|entry| (entry.fault, quoted(entry.states), entry.meaning));
    table(&mut page, "Postgres", rows.collect());
    page.push_str("\nTwo characters stand for the whole class but for the codes that are named by themselves.\n");
    page
}

#[test]
fn the_failures_page_says_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/failures.md");
    if std::env::var_os("OUTBOX_RELAY_BLESS").is_some() {
        std::fs::write(&path, render()).expect("docs/failures.md can be written");
    }
    let found = std::fs::read_to_string(&path).expect("docs/failures.md is there");
    assert!(found == render(), "docs/failures.md is not what src/fault says: OUTBOX_RELAY_BLESS=1 writes it anew");
}
