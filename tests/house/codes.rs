//! Checks the codes of warnings and errors: each line has a code, each code is used, and each has its entry in the runbook.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use event_outbox::code::Code;

use crate::log_lines::{calls, sources};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_warning_and_every_error_carries_a_code() {
    let (mut lines, mut bare) = (0, Vec::new());
    for (path, text) in &sources() {
        for call in calls(text).iter().filter(|call| call.is_warning_or_error()) {
            lines += 1;
            let first = call.first_field();
            // A literal would be a code that is missing from the table.
            let coded = first.starts_with("code = %Code::") || first == "code = %code";
            if !coded {
                bare.push(format!("{}: {first}", path.display()));
            }
        }
    }
    assert!(lines >= 20, "only {lines} lines were found");
    let how = "a line of crates/event-outbox/src/code.rs, an entry of docs/how-to/runbook.md, and `code = %Code::…` as the first field";
    assert!(bare.is_empty(), "without a code (it takes {how}):\n{}", bare.join("\n"));
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

/// Returns the runbook's entries: the heading and the text below it.
fn entries(runbook: &str) -> BTreeMap<&str, &str> {
    let entries = runbook.split("\n### ").skip(1).filter(|entry| entry.starts_with("OR-"));
    let entries: Vec<_> = entries.map(|entry| entry.split_once('\n').expect("a heading and more")).collect();
    let found: BTreeMap<_, _> = entries.iter().copied().collect();
    assert_eq!(found.len(), entries.len(), "an entry is there twice");
    found
}

#[test]
fn every_code_has_its_entry_in_the_runbook_and_every_entry_its_code() {
    let runbook =
        std::fs::read_to_string(root().join("docs/how-to/runbook.md")).expect("docs/how-to/runbook.md is there");
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
