//! Scans the sources for log lines, so that tests can keep their rules: how long a message is, and how numbers and names are written.

use std::path::{Path, PathBuf};

/// The fewest and the most words of a message: enough to be understood alone, and few enough to be read at a glance.
const FEWEST_WORDS: usize = 3;
const MOST_WORDS: usize = 8;

/// Endings of the names of fields that are numbers.
const UNITS: [&str; 5] = ["_ms", "_s", "_bytes", "_total", "_waited"];

/// Names of fields that are numbers.
const COUNTS: [&str; 9] =
    ["pending", "scheduled", "held", "dead", "published", "events", "processed", "partitions", "attempts"];

/// Returns the folder of the repository: the one that has the documents.
fn repository() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join("docs").is_dir()).expect("docs/ is there")
}

/// Returns every file below `folder` with this extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found
}

/// Returns the text of every document below docs/.
pub(super) fn documents() -> Vec<String> {
    let paths = files(&repository().join("docs"), "md");
    paths.iter().map(|path| std::fs::read_to_string(path).expect("a document")).collect()
}

/// Returns the source files of all packages, without their comments and without their tests. Leaves out the files whose examples are log
/// lines: this one and the table of codes.
pub(super) fn sources() -> Vec<(PathBuf, String)> {
    let packages = std::fs::read_dir(repository().join("crates")).into_iter().flatten();
    let packages = packages.map(|package| package.expect("a package").path());
    let folders = packages.chain([repository().to_owned()]).map(|package| package.join("src"));
    let paths: Vec<PathBuf> = folders.filter(|folder| folder.exists()).flat_map(|src| files(&src, "rs")).collect();
    assert!(paths.len() > 100, "only {} files", paths.len());
    let is_scanned = |path: &PathBuf| !path.ends_with("log_lines.rs") && !path.ends_with("code.rs");
    paths.into_iter().filter(is_scanned).map(|path| (path.clone(), code_of(&path))).collect()
}

/// Returns the source files below `folder`, without their comments and without their tests.
pub(super) fn sources_below(folder: &Path) -> Vec<(PathBuf, String)> {
    files(folder, "rs").into_iter().map(|path| (path.clone(), code_of(&path))).collect()
}

fn code_of(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("a source file");
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// A call of one of tracing's macros.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call<'t> {
    level: &'t str,
    /// The arguments except the message: `target: "..."`, `name = value`, `name`.
    fields: Vec<&'t str>,
    /// The message as it stands in the source.
    message: Option<&'t str>,
}

impl<'t> Call<'t> {
    pub(super) fn is_warning_or_error(&self) -> bool {
        matches!(self.level, "warn" | "error")
    }

    pub(super) fn first_field(&self) -> &'t str {
        self.fields.first().copied().unwrap_or_default()
    }

    pub(super) fn message(&self) -> Option<&'t str> {
        self.message
    }

    /// Returns the variant of [`Notice`](event_outbox::notice::Notice).
    pub(super) fn notice(&self) -> Option<&'t str> {
        self.field("notice")?.strip_prefix("%Notice::")
    }

    fn field(&self, name: &str) -> Option<&'t str> {
        self.fields.iter().find_map(|field| field.strip_prefix(name)?.trim_start().strip_prefix('=')).map(str::trim)
    }

    /// Returns true for a librdkafka line that is logged in librdkafka's own words.
    fn is_of_librdkafka(&self) -> bool {
        self.fields.contains(&"target: \"librdkafka\"")
    }
}

/// Returns every call of `tracing::info!` and its like, and of `tracing::event!`.
pub(super) fn calls(text: &str) -> Vec<Call<'_>> {
    let mut found = Vec::new();
    for name in ["trace", "debug", "info", "warn", "error", "event"] {
        let start = format!("{name}!(");
        for (at, _) in text.match_indices(&start) {
            if text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
                continue;
            }
            let mut arguments = arguments(&text[at + start.len()..]);
            let level = match name {
                "event" => level_of(arguments.remove(0)),
                level => level,
            };
            let (messages, fields): (Vec<_>, Vec<_>) = arguments.into_iter().partition(is_literal);
            found.push(Call { level, fields, message: messages.first().map(|literal| literal.trim_matches('"')) });
        }
    }
    found
}

/// Returns `warn` for `Level::WARN`, and so on.
fn level_of(argument: &str) -> &'static str {
    let levels = ["trace", "debug", "info", "warn", "error"];
    let level = levels.into_iter().find(|level| argument.ends_with(&level.to_uppercase()));
    level.unwrap_or_else(|| panic!("a level that is written out, not {argument}"))
}

fn is_literal(argument: &&str) -> bool {
    argument.starts_with('"') && argument.ends_with('"') && !argument.trim_matches('"').contains("\" = ")
}

/// Splits the text before the closing parenthesis at its commas. Strings and bracketed parts stay whole.
fn arguments(text: &str) -> Vec<&str> {
    let (mut found, mut open, mut from) = (Vec::new(), 0_i32, 0);
    let (mut is_string, mut is_escaped) = (false, false);
    for (at, next) in text.char_indices() {
        let is_end = match next {
            _ if is_string => {
                is_string = next != '"' || is_escaped;
                is_escaped = next == '\\' && !is_escaped;
                continue;
            }
            '"' => {
                is_string = true;
                continue;
            }
            '(' | '[' | '{' => {
                open += 1;
                continue;
            }
            ')' | ']' | '}' if open > 0 => {
                open -= 1;
                continue;
            }
            ')' => true,
            ',' if open == 0 => false,
            _ => continue,
        };
        found.push(text[from..at].trim());
        from = at + 1;
        if is_end {
            found.retain(|argument| !argument.is_empty());
            return found;
        }
    }
    panic!("a call that is not closed: {text:.100}");
}

/// Returns the mistake in a call, if there is one.
fn mistake(call: &Call<'_>) -> Option<String> {
    let is_numeric = |name: &str| COUNTS.contains(&name) || UNITS.iter().any(|unit| name.ends_with(unit));
    let is_text =
        |value: &str| value.starts_with(['%', '?']) || value.contains("format!") || value.contains("to_string()");
    for field in &call.fields {
        let (name, value) = field.split_once('=').unwrap_or((field.trim_start_matches(['%', '?']), field));
        if is_numeric(name.trim()) && is_text(value.trim()) {
            return Some(format!("`{field}` is a number and has to be logged as one"));
        }
    }
    let has_notice = call.notice().is_some();
    if call.level == "info" && !has_notice {
        return Some("an INFO line has a `notice = %Notice::...`".to_owned());
    }
    if call.is_warning_or_error() && !has_notice && call.field("code") == Some("%code") {
        return Some("a line whose code depends on the cause has a `notice = %Notice::...`".to_owned());
    }
    if call.is_of_librdkafka() {
        return None;
    }
    let Some(message) = call.message else { return Some("it has no message".to_owned()) };
    let words = message.split_whitespace().count();
    if !(FEWEST_WORDS..=MOST_WORDS).contains(&words) {
        return Some(format!("a message has {FEWEST_WORDS} to {MOST_WORDS} words, not {words}: {message:?}"));
    }
    message.contains('{').then(|| format!("what changes is a field and no part of the message: {message:?}"))
}

#[test]
fn log_lines_have_short_messages_notices_and_numbers() {
    let (mut seen, mut mistakes) = (0, Vec::new());
    for (path, text) in &sources() {
        for call in calls(text) {
            seen += 1;
            mistakes.extend(mistake(&call).map(|mistake| format!("{}: {mistake}", path.display())));
        }
    }
    assert!(seen >= 60, "only {seen} log lines were found");
    assert!(mistakes.is_empty(), "consequence, reason and next step are fields:\n{}", mistakes.join("\n"));
}

#[test]
fn the_scan_finds_the_parts_of_a_call() {
    let text = "tracing::warn!(code = %Code::X, \"event.type\" = f(1, \"a)\"), left, \"it \\\"waits\\\", still\"); my_error!(e)";
    let fields = vec!["code = %Code::X", "\"event.type\" = f(1, \"a)\")", "left"];
    assert_eq!(calls(text), [Call { level: "warn", fields, message: Some("it \\\"waits\\\", still") }]);
    let levels = "tracing::event!(tracing::Level::ERROR, \"c\"); event!(Level::INFO, \"d\")";
    assert_eq!(
        calls(levels).iter().map(|call| (call.level, call.message)).collect::<Vec<_>>(),
        [("error", Some("c")), ("info", Some("d"))]
    );
}

#[test]
fn the_scan_finds_what_it_is_there_for() {
    let wrong = |text: &str| calls(text).iter().find_map(mistake).is_some();
    assert!(!wrong("info!(notice = %Notice::Ready, lanes, waited_ms = 3, \"relay is ready\")"));
    assert!(wrong("info!(lanes, \"relay is ready\")"), "no notice");
    assert!(wrong("info!(notice = %Notice::Ready, \"ready now\")"), "two words");
    assert!(wrong("info!(notice = %Notice::Ready, \"one two three four five six seven eight nine\")"), "nine words");
    assert!(wrong("info!(notice = %Notice::Ready, \"relay {name} is ready\")"), "a value in the message");
    assert!(wrong("info!(notice = %Notice::Ready, waited_ms = %waited, \"relay is ready\")"), "a number as text");
    assert!(wrong("info!(notice = %Notice::Status, pending = format!(\"{n}\"), \"status of the relay\")"), "the same");
    assert!(wrong("info!(notice = %Notice::Status, %pending, \"status of the relay\")"), "and the same");
    assert!(wrong("warn!(code = %code, \"an outage has started\")"), "any code and no notice");
    assert!(!wrong("warn!(code = %Code::Stalled, \"events wait and none has moved\")"));
    assert!(!wrong("debug!(target: \"librdkafka\", \"{message}\")"));
}
