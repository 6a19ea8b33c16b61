//! The codes of warnings and errors: each line has one, each is used, each has its entry in the runbook.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use event_outbox::code::Code;

/// The folders with code that logs.
const SOURCES: [&str; 3] = ["src", "crates/event-outbox/src", "crates/lab/src"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file but this one, without its comments and without its tests.
fn sources() -> Vec<(PathBuf, String)> {
    let (mut folders, mut found) = (SOURCES.map(|folder| root().join(folder)).to_vec(), Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of the sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("event-outbox/src/code.rs")
            {
                let text = std::fs::read_to_string(&path).expect("a source file");
                found.push((
                    path,
                    without_comments(text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default()),
                ));
            }
        }
    }
    assert!(found.len() > 100, "only {} files", found.len());
    found
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// What stands between the parentheses of each `warn!` and `error!`, and of each `event!` of those levels.
fn complaints(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for call in ["warn!(", "error!(", "event!("] {
        for (at, _) in text.match_indices(call) {
            if text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
                continue;
            }
            let arguments = enclosed(&text[at + call.len()..]);
            if call != "event!(" || arguments.contains("WARN") || arguments.contains("ERROR") {
                found.push(arguments);
            }
        }
    }
    found
}

/// Up to the parenthesis that closes what has been opened; those within strings come in pairs here, or the test says so.
fn enclosed(text: &str) -> &str {
    let mut open = 1;
    let end = text.find(|next: char| {
        open += i32::from(next == '(') - i32::from(next == ')');
        open == 0
    });
    &text[..end.expect("a call that is closed")]
}

#[test]
fn every_warning_and_every_error_carries_a_code() {
    let (mut calls, mut bare) = (0, Vec::new());
    for (path, text) in &sources() {
        for arguments in complaints(text) {
            calls += 1;
            let first = arguments.trim_start();
            // A literal would be a code that no table knows.
            let coded = first.starts_with("code = %Code::") || first.starts_with("code = %code,");
            if !coded {
                bare.push(format!("{}: {}", path.display(), first.lines().next().unwrap_or_default()));
            }
        }
    }
    assert!(calls >= 20, "only {calls} calls were found");
    let how = "a line of crates/event-outbox/src/code.rs, an entry of docs/how-to/runbook.md, and `code = %Code::…` as the first field";
    assert!(bare.is_empty(), "without a code (it takes {how}):\n{}", bare.join("\n"));
}

#[test]
fn the_scan_sees_what_it_is_there_for() {
    let text = "tracing::warn!(a = f(1), \"b\"); event!(Level::ERROR, \"c\"); event!(Level::INFO, \"d\"); my_error!(e)";
    assert_eq!(complaints(text), ["a = f(1), \"b\"", "Level::ERROR, \"c\""]);
}

#[test]
fn every_code_is_used() {
    let all: String = sources().into_iter().map(|(_, text)| text).collect();
    let words: BTreeSet<&str> = all.split(|next: char| !(next.is_alphanumeric() || next == ':')).collect();
    let used = |variant: &str| {
        ["Code", "Runbook"].iter().any(|path| words.iter().any(|word| word.ends_with(&format!("{path}::{variant}"))))
    };
    let unused: Vec<_> = Code::ALL.iter().filter(|code| !used(&format!("{code:?}"))).map(Code::to_string).collect();
    assert!(unused.is_empty(), "nothing uses {unused:?}");
}

#[test]
fn names_and_numbers_are_given_once_and_in_order() {
    let numbers: Vec<u16> = Code::ALL.iter().map(|code| *code as u16).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(names.len(), Code::ALL.len());
    assert_eq!(Code::DatabaseUnreachable.to_string(), "OR-2001");
}

/// The runbook's entries: heading, and what follows it.
fn entries(runbook: &str) -> BTreeMap<&str, &str> {
    let entries = runbook.split("\n### ").skip(1).filter(|entry| entry.starts_with("OR-"));
    let entries: Vec<_> = entries.map(|entry| entry.split_once('\n').expect("a heading and more")).collect();
    let found: BTreeMap<_, _> = entries.iter().copied().collect();
    assert_eq!(found.len(), entries.len(), "an entry is there twice");
    found
}

#[test]
fn every_code_has_its_entry_in_the_runbook_and_every_entry_its_code() {
    let runbook = std::fs::read_to_string(root().join("docs/how-to/runbook.md")).expect("docs/how-to/runbook.md is there");
    let mut entries = entries(&runbook);
    let mut mistakes = Vec::new();
    for code in Code::ALL {
        let heading = format!("{code} {}", code.name());
        let Some(entry) = entries.remove(heading.as_str()) else {
            mistakes.push(format!("no entry: ### {heading}\n\n{}.", code.meaning()));
            continue;
        };
        let lowered = entry.to_lowercase();
        if !lowered.trim_start().starts_with(&code.meaning().to_lowercase()) {
            mistakes.push(format!("{heading} does not begin with: {}", code.meaning()));
        }
        for part in ["**Impact**", "**First**", "**Fix**"] {
            if !entry.contains(part) {
                mistakes.push(format!("{heading} has no {part}"));
            }
        }
    }
    mistakes.extend(entries.keys().map(|heading| format!("no code: {heading}")));
    assert!(mistakes.is_empty(), "docs/how-to/runbook.md:\n{}", mistakes.join("\n"));
}
