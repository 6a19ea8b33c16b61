//! Renders docs/reference/failures.md from the tables. `OUTBOX_RELAY_BLESS=1 cargo test --lib failures_page` writes the file.

use std::fmt::Write;
use std::path::Path;

use super::{Class, Fault, kafka, postgres};

const HEAD: &str = "\
# Failures

Every error code that Kafka (as librdkafka reports it) and Postgres (as SQLSTATE) can report to a relay: what it means, and what to do.
This page is rendered from the tables in `src/fault`; tests make sure that it is up to date and that no code is missing. The log, `check`
and the commands name each failure by its code in the [runbook](../how-to/runbook.md).

| class | what the relay does | costs an attempt |
|---|---|---|
| outage | waits and tries the same again; while the brokers are away no transaction is open | no |
| destination | holds the events of this topic, all others go on; asks for the topic until it can be written | no |
| row | by `RELAY_ON_POISON`: `dead_letter` makes the event DEAD, `hold_entity` makes its entity's later events wait behind it | one |
| action_required | the same as for an outage, but it does not heal by itself: somebody has to change something | no |

The relay retries with back-off. A worker waits 100 ms, then twice as long each time, up to 2 s. Each pause is shortened at random by up to
half, so that relays do not come back in step; the first success resets it. While the cluster is away, the relay asks it every 0.2 to 1 s.
It asks for a topic that does not exist every second. For a topic that exists and refuses records it waits 2 s, then twice as long, up to
60 s. No attempt is counted and nothing is given up, however long it takes.

The log line, `/readyz`, the reason of a held topic and the metric `outbox_relay_unacknowledged_records_total` contain the code of the
column runbook; the log line and `/readyz` also contain the next step. A record without an answer is OR-3014.

A record without an answer, or with an error of another class than `row` or `destination`, may have been written all the same. It does not count
as failed: its row stays PENDING and is sent again, in order, with everything that came after it.
";

fn word(class: Class) -> &'static str {
    match class {
        Class::Outage => "outage",
        Class::Destination => "destination",
        Class::Row => "row",
        Class::ActionRequired => "action_required",
    }
}

fn table(page: &mut String, title: &str, mut rows: Vec<(Fault, String, &str)>) {
    rows.sort_by_key(|(fault, ..)| fault.class);
    let _ = write!(
        page,
        "\n## {title}\n\n| class | runbook | reported as | meaning | what to do |\n|---|---|---|---|---|\n"
    );
    for (Fault { class, code, next_step }, reported_as, meaning) in rows {
        let anchor = format!("{code}-{}", code.name()).to_lowercase();
        let _ = writeln!(
            page,
            "| {} | [{code}](../how-to/runbook.md#{anchor}) | {reported_as} | {meaning} | {next_step} |",
            word(class)
        );
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
    let produce: Vec<_> = kafka::PRODUCE_CODES.iter().map(|code| format!("{code:?}")).collect();
    let _ = writeln!(page, "Brokers answer a Produce request with these: {}.", quoted(&produce));
    let rows = postgres::TABLE.iter().map(|entry| (entry.fault, quoted(entry.states), entry.meaning));
    table(&mut page, "Postgres", rows.collect());
    page.push_str("\nTwo characters stand for the whole class, except the codes that are listed separately.\n");
    page
}

#[test]
fn the_failures_page_says_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/failures.md");
    if std::env::var_os("OUTBOX_RELAY_BLESS").is_some() {
        std::fs::write(&path, render()).expect("failed to write docs/reference/failures.md");
    }
    let found = std::fs::read_to_string(&path).expect("failed to read docs/reference/failures.md");
    assert!(
        found == render(),
        "docs/reference/failures.md differs from the tables in src/fault: OUTBOX_RELAY_BLESS=1 writes it again"
    );
}
