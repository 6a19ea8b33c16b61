//! The examples and exit codes at the end of each `--help`. A test parses every example.

use clap::Command;

/// The help of one command.
struct Help {
    /// The words after `outbox-relay`.
    command: &'static str,
    /// Lines as they are typed, without `outbox-relay`, each with what it is for.
    examples: &'static [(&'static str, &'static str)],
    /// What exit code 1 means.
    finding: Option<&'static str>,
}

const fn help(
    command: &'static str,
    finding: Option<&'static str>,
    examples: &'static [(&'static str, &'static str)],
) -> Help {
    Help { command, examples, finding }
}

const CANNOT: Option<&str> = Some("the database or the brokers cannot be used; nothing was changed");

/// Every command that people call.
const HELP: &[Help] = &[
    help("", None, &[("migrate", "create the tables"), ("check", "find what is missing"), ("run", "publish events")]),
    help(
        "run",
        Some("the relay cannot run, or did not drain in time"),
        &[
            ("run", "publish events until SIGTERM"),
            ("run --migrate --set batch_size=500", "create or update the tables first; change one setting"),
        ],
    ),
    help(
        "check",
        Some("something must be fixed (with --strict: or a warning)"),
        &[
            ("check", "show findings, the worst first, each with its fix"),
            ("check --strict --json", "for a pipeline: warnings count too"),
        ],
    ),
    help(
        "status",
        CANNOT,
        &[
            ("status", "show what waits, and what to do"),
            ("status --watch 5s", "show it again every 5 seconds"),
            ("status --json", "one object, for scripts"),
        ],
    ),
    help(
        "health",
        Some("the relay is not ready, or does not answer"),
        &[("health", "the readiness probe of a container"), ("health --live", "the liveness probe")],
    ),
    help(
        "explain",
        Some("there is no such event or entity"),
        &[
            ("explain 4711", "the event with this outbox id"),
            ("explain 6fa459ea-ee8a-3ca4-894e-db77e160355e", "the event with this event id"),
            ("explain --entity order-7", "the events of this entity"),
        ],
    ),
    help(
        "explain-route",
        Some("there is no such event, or it would go DEAD"),
        &[
            ("explain-route 4711", "the record of the event with this outbox id"),
            (
                "explain-route --entity-type order --entity-id order-7 --event-type OrderPlaced",
                "the record of an event that is only thought of",
            ),
            (
                "explain-route --entity-type order --header outbox-partition=3 --json",
                "with a partition of its own, for scripts",
            ),
        ],
    ),
    help(
        "tail",
        CANNOT,
        &[
            ("tail", "follow all events until Ctrl-C"),
            ("tail --type OrderPlaced --events 1", "wait until one event is on its topic"),
        ],
    ),
    help(
        "migrate",
        CANNOT,
        &[
            ("migrate", "create or update the tables"),
            ("migrate --roles", "create the four roles as well"),
            ("migrate --print", "print the SQL for another migration tool"),
        ],
    ),
    help(
        "verify",
        Some("an event is lost, unknown, changed or out of order"),
        &[
            ("verify", "compare the table with all topics"),
            ("verify --topic order-events --since 2h --rate 5000", "one topic, the last two hours, slowly"),
            ("verify --entity order-7 --json", "one entity, for scripts"),
        ],
    ),
    help(
        "compare",
        Some("the topics differ, or have no event in common"),
        &[
            (
                "compare --left outbox.event.order --right shadow.outbox.event.order --id-header id",
                "compare a connector's topic with the relay's, up to their ends",
            ),
            (
                "compare --left outbox.event.order --right shadow.outbox.event.order --id-header id --overlap --until 10000",
                "follow both until 10000 events are on both",
            ),
            (
                "compare --left orders --right order-events --left-id-header json:/id --ignore headers,value --json",
                "compare which events there are and their order, for scripts",
            ),
        ],
    ),
    help(
        "pause",
        Some("a batch that began before the pause is still in flight, or the database cannot be used"),
        &[
            (
                "pause --topic order-events --reason \"the cluster moves\" --for 30m",
                "hold a topic back for half an hour",
            ),
            ("pause --entity order-7 --reason \"under repair\"", "hold one entity back"),
            ("pause --list", "show the pauses"),
        ],
    ),
    help(
        "resume",
        Some("there is no such pause, or the database cannot be used"),
        &[
            ("resume", "end the only pause"),
            ("resume --topic order-events", "end the pause of a topic"),
            ("resume --every", "end all pauses"),
        ],
    ),
    help(
        "dead list",
        CANNOT,
        &[
            ("dead list", "count the events by cause"),
            ("dead list --type OrderPlaced --since 2h --json", "some of them, for scripts"),
        ],
    ),
    help(
        "dead show",
        Some("the event does not need a decision, or the database cannot be used"),
        &[
            ("dead show --cause 3f2a91c0", "show the events of one cause"),
            ("dead show --id 4711 --payload", "show one event with payload and headers"),
        ],
    ),
    help(
        "dead retry",
        Some("the event needs no decision, nobody confirmed, or the database cannot be used"),
        &[
            ("dead retry --cause 3f2a91c0 --dry-run", "show what would be sent again"),
            ("dead retry --cause 3f2a91c0 --reason \"schema fixed\" --yes", "send it again, without a question"),
        ],
    ),
    help(
        "dead discard",
        Some("the event needs no decision, nobody confirmed, or the database cannot be used"),
        &[("dead discard --id 4711 --reason \"a test order\"", "give one event up")],
    ),
    help(
        "dlq list",
        Some("the topic cannot be read"),
        &[
            ("dlq list order-events.billing.dlq", "count the dead letters by cause"),
            ("dlq list order-events.billing.dlq --since 1d --json", "those of the last day, for scripts"),
        ],
    ),
    help(
        "dlq show",
        Some("the topic cannot be read"),
        &[
            ("dlq show order-events.billing.dlq --cause 3f2a91c0", "show the dead letters of one cause"),
            (
                "dlq show order-events.billing.dlq --partition 0 --offset 17 --payload",
                "show one with payload and headers",
            ),
        ],
    ),
    help(
        "dlq redrive",
        Some("a topic cannot be read or written, or nobody confirmed; run it again to continue"),
        &[
            ("dlq redrive order-events.billing.dlq --cause 3f2a91c0 --dry-run", "show what would be sent"),
            (
                "dlq redrive order-events.billing.dlq --all --rate 100",
                "send all to the retry topic that only their group reads",
            ),
        ],
    ),
    help(
        "dlq discard",
        Some("the topic or the database cannot be used, or nobody confirmed"),
        &[(
            "dlq discard order-events.billing.dlq --cause 3f2a91c0 --reason \"the order was refunded\"",
            "give the events of one cause up",
        )],
    ),
    help(
        "replay",
        Some("a topic cannot be written, or nobody confirmed; the hint says how to continue"),
        &[
            ("replay --type OrderPlaced --since 2026-01-31 --dry-run", "count what would be sent again"),
            (
                "replay --all --to order-events.rebuild --rate 1000 --reason \"new consumer\"",
                "send all to a topic of its own",
            ),
        ],
    ),
    help(
        "prune",
        Some("consumers would apply duplicates, nobody confirmed, or the database cannot be used"),
        &[
            ("prune --mode delete --after 7d --dry-run", "count the events that would go"),
            ("prune --mode archive --after 30d --yes", "move old events to the archive"),
        ],
    ),
    help(
        "import debezium",
        Some("an option is refused, or a file or the table cannot be used; nothing was written"),
        &[
            ("import debezium connector.json", "say what becomes of each option"),
            ("import debezium connector.json --sql trigger.sql --env relay.env", "write the trigger and the settings"),
            (
                "import debezium connector.properties --worker worker.properties --column payload=bytea --json",
                "without a database, for scripts",
            ),
        ],
    ),
    help(
        "capture",
        Some("the table cannot be captured, or its lock is not free; the message says what was changed"),
        &[
            ("capture orders --dry-run", "show the SQL"),
            (
                "capture shop.orders --on insert,update --columns status,total --type order",
                "capture some changes and columns",
            ),
            ("capture orders --backfill --rate 1000", "make events of the rows that are there; run it again to go on"),
            ("capture --list", "show the captured tables"),
            ("capture --drop orders", "remove the triggers"),
        ],
    ),
    help(
        "adopt",
        Some(
            "the table cannot be kept in order, its lock is not free, or events wait after --undo; the message says what was changed",
        ),
        &[
            ("adopt outbox --dry-run", "show what the columns would mean, and the SQL"),
            (
                "adopt shop.outbox --map customer_id=entity_id --constant entity_type=customer",
                "say what it cannot guess",
            ),
            ("adopt outbox --undo", "give new rows back to the loop"),
        ],
    ),
    help(
        "config show",
        None,
        &[
            ("config show", "show each setting that is given, and where"),
            ("config show --defaults --json", "show also the defaults, for scripts"),
        ],
    ),
    help("completions", None, &[("completions bash", "print the script for bash")]),
    help(
        "man",
        None,
        &[("man", "print the page of outbox-relay"), ("man dead retry", "print the page of one command")],
    ),
    #[cfg(feature = "bench")]
    help(
        "bench",
        Some("the measurement failed"),
        &[("bench drain --events 100000", "measure how fast a backlog is published")],
    ),
    #[cfg(feature = "demo")]
    help("demo", Some("the reconciliation at the end found a difference"), &[("demo", "watch the relay at work")]),
    #[cfg(feature = "demo")]
    help(
        "demo order-flow",
        Some("the reconciliation at the end found a difference"),
        &[("demo order-flow", "watch four services that work by events alone")],
    ),
];

/// Adds the examples and the exit codes to the help of each command.
pub(super) fn add_to(root: Command) -> Command {
    HELP.iter().fold(root, |root, help| {
        let path: Vec<&str> = help.command.split_whitespace().collect();
        at(root, &path, |command| command.after_long_help(help.text()))
    })
}

fn at(command: Command, path: &[&str], change: impl FnOnce(Command) -> Command) -> Command {
    match path {
        [] => change(command),
        [first, rest @ ..] => command.mut_subcommand(first, |command| at(command, rest, change)),
    }
}

impl Help {
    fn text(&self) -> String {
        let mut text = "Examples:\n".to_owned();
        for (line, purpose) in self.examples {
            text += &format!("  # {purpose}\n  outbox-relay {line}\n");
        }
        let finding = self.finding.map_or_else(String::new, |finding| format!("  1    {finding}\n"));
        text + "\nExit codes:\n  0    success\n"
            + &finding
            + "  2    wrong usage\n  64   wrong configuration\n  70   the command failed in another way\n  130  interrupted"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visible(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
        found.push((path.to_owned(), command.clone()));
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            visible(command, format!("{path} {}", command.get_name()).trim(), found);
        }
    }

    fn all() -> Vec<(String, Command)> {
        let mut found = Vec::new();
        visible(&super::super::command(), "", &mut found);
        found
    }

    #[test]
    fn every_command_has_examples_and_exit_codes() {
        for (path, command) in all() {
            let calls = path.is_empty() || command.get_subcommands().next().is_none();
            let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            assert!(!calls || help.contains("Examples:\n  # ") && help.contains("Exit codes:\n  0 "), "{path}: {help}");
        }
    }

    #[test]
    fn every_command_that_prints_json_has_a_schema() {
        let schemas = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/schemas");
        for (path, command) in all() {
            let prints = command.get_arguments().any(|argument| argument.get_long() == Some("json"));
            // The two demos print the same.
            let name = path.replace(' ', "-").replace("demo-order-flow", "demo");
            assert!(!prints || schemas.join(format!("{name}.json")).is_file(), "docs/reference/schemas/{name}.json");
        }
    }

    #[test]
    fn every_example_is_taken() {
        for (line, purpose) in HELP.iter().flat_map(|help| help.examples) {
            let words = line.split('"').enumerate().flat_map(|(index, part)| match index % 2 {
                0 => part.split_whitespace().collect(),
                _ => vec![part],
            });
            let parsed = super::super::command().try_get_matches_from(["outbox-relay"].into_iter().chain(words));
            assert!(parsed.is_ok(), "{line}: {}", parsed.err().map(|error| error.to_string()).unwrap_or_default());
            assert!(!purpose.is_empty(), "{line}");
        }
    }

    /// The flags that mean something else somewhere, with the reason.
    const EXCEPTIONS: [(&str, &str, &str); 19] = [
        ("compare", "until", "a number of events to be on both topics"),
        ("compare", "ignore", "parts of a record, and not options of a connector"),
        ("import debezium", "force", "replaces files; elsewhere it overrides a safeguard of rows"),
        ("capture", "event-type", "a template of types, and no type of one event"),
        ("capture", "bulk", "sets triggers for each statement, for another reason"),
        ("adopt", "wait", "waits for the relay, and not for a record"),
        ("explain-route", "entity-type", "describes an event that is only thought of, and takes none out"),
        ("bench", "yes", "answers another question: whether the servers of the environment may be used"),
        ("demo", "yes", "the same"),
        ("demo order-flow", "yes", "the same"),
        ("bench", "wake-up-trigger", "sets the trigger in the schemas of the bench"),
        ("check", "topic", "adds a topic to those that events name, and takes none out"),
        ("bench", "json", "writes a file beside the table, for measurements in a series"),
        ("bench", "payload", "the load's payload, in bytes"),
        ("capture", "list", "shows tables, and not pauses"),
        ("capture", "type", "names the type of the entity, and selects no events"),
        ("bench", "rate", "the load's rate, and not a limit"),
        ("bench", "events", "the load's number of events"),
        ("bench", "entities", "the load's number of entities"),
    ];

    #[test]
    fn one_flag_means_one_thing_in_all_commands() {
        let mut meanings = std::collections::BTreeMap::new();
        let mut differ = Vec::new();
        for (path, command) in all() {
            for argument in command.get_arguments().filter(|argument| !argument.is_global_set()) {
                let Some(flag) = argument.get_long() else { continue };
                if EXCEPTIONS.iter().any(|(of, excepted, _)| *of == path && *excepted == flag) {
                    continue;
                }
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                let first = help.split(['.', ';', '[', ':']).next().unwrap_or_default().trim().to_owned();
                let names: Vec<_> =
                    argument.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
                let takes = argument.get_action().takes_values().then(|| format!("{:?}", argument.get_value_parser()));
                let meaning = (first, names, takes);
                let known = meanings.entry(flag.to_owned()).or_insert_with(|| (path.clone(), meaning.clone()));
                if known.1 != meaning {
                    differ.push(format!("--{flag}\n  {}: {:?}\n  {path}: {meaning:?}", known.0, known.1));
                }
            }
        }
        assert!(differ.is_empty(), "{}", differ.join("\n"));
    }
}
