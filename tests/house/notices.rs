//! Checks the notices of log lines: each is logged, and each has its row in the documents.

use std::collections::BTreeSet;

use event_outbox::notice::Notice;

use crate::log_lines::{calls, documents, sources};

#[test]
fn names_are_given_once() {
    let names: BTreeSet<String> = Notice::ALL.iter().map(Notice::to_string).collect();
    assert_eq!(names.len(), Notice::ALL.len());
}

#[test]
fn every_notice_is_logged() {
    let all: String = sources().into_iter().map(|(_, text)| text).collect();
    let words: BTreeSet<&str> = all.split(|next: char| !(next.is_alphanumeric() || next == ':')).collect();
    let is_logged = |variant: &str| words.iter().any(|word| word.ends_with(&format!("Notice::{variant}")));
    let unused: Vec<_> = Notice::ALL.iter().filter(|notice| !is_logged(&format!("{notice:?}"))).collect();
    assert!(unused.is_empty(), "nothing logs {unused:?}");
}

/// Returns the notice or the code and the message of a row that begins like this: "| `ready`: `relay is ready`".
fn row(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("| `")?.split_once("`: `")?;
    Some((name, rest.split_once('`')?.0))
}

#[test]
fn every_notice_has_its_row_in_the_documents_and_every_row_its_log_line() {
    let (documents, sources) = (documents(), sources());
    let rows: Vec<_> = documents.iter().flat_map(|text| text.lines()).filter_map(row).collect();
    let missing: Vec<_> = Notice::ALL
        .iter()
        .map(Notice::to_string)
        .filter(|notice| !rows.iter().any(|(name, _)| name == notice))
        .collect();
    assert!(
        missing.is_empty(),
        "no table of docs/ has a row that begins with \"| `NOTICE`: `message`\" for {missing:?}"
    );
    let lines: Vec<_> = sources.iter().flat_map(|(_, text)| calls(text)).collect();
    let is_logged = |(name, message): &(&str, &str)| {
        let variant = Notice::ALL.iter().find(|notice| notice.to_string() == *name).map(|notice| format!("{notice:?}"));
        let is_named = |notice: Option<&str>| variant.is_none() || notice == variant.as_deref();
        lines.iter().any(|line| line.message() == Some(*message) && is_named(line.notice()))
    };
    let unknown: Vec<_> = rows.iter().filter(|row| !is_logged(row)).collect();
    assert!(unknown.is_empty(), "no log line is what docs/ says: {unknown:?}");
}
