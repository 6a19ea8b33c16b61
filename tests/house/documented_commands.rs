//! Checks that the commands and flags in the documents exist. Commands in `sh` blocks and in `code` are found by the name of the binary.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::log_lines::documents;

/// Returns the flags of each command, by its name: `dlq list`.
fn commands() -> BTreeMap<String, BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/commands.md");
    let reference = std::fs::read_to_string(path).expect("the reference of commands");
    let sections = reference.split("\n## outbox-relay").skip(1);
    let flag = |word: &str| -> Option<String> {
        let name: String =
            word.strip_prefix("--")?.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
        Some(name)
    };
    sections
        .map(|section| {
            let (name, text) = section.split_once('\n').expect("a heading and its text");
            let flags = text.split_whitespace().map(|word| word.trim_start_matches('[')).filter_map(flag);
            (name.trim().to_owned(), flags.collect())
        })
        .collect()
}

/// Returns the words of each command line that a document shows, without the name of the binary.
fn shown(document: &str) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    let (mut is_block, mut text) = (false, String::new());
    for line in document.lines() {
        let fence = line.trim_start().starts_with("```");
        if fence {
            is_block = !is_block;
        }
        if is_block || fence {
            // A line of a block may go on in the next one.
            let line = line.split(" #").next().unwrap_or_default();
            match line.trim_end().strip_suffix('\\') {
                Some(begun) => text.push_str(begun),
                None => lines.push(std::mem::take(&mut text) + line),
            }
        }
    }
    let prose: Vec<&str> = document.split("```").step_by(2).collect();
    let quoted = prose.iter().flat_map(|part| part.split('`').skip(1).step_by(2));
    lines.extend(quoted.map(|code| code.replace('\n', " ")));
    let of_binary = |line: &String| -> Option<Vec<String>> {
        let (_, rest) = line.split_once("outbox-relay ")?;
        let end = rest.find(['|', ';', '>', ')', '&']).unwrap_or(rest.len());
        Some(rest[..end].split_whitespace().map(str::to_owned).collect())
    };
    lines.iter().filter(|line| !line.contains("docker ") && !line.contains("cargo ")).filter_map(of_binary).collect()
}

#[test]
fn the_documents_show_only_flags_that_their_commands_have() {
    let (commands, mut checked, mut wrong) = (commands(), 0, Vec::new());
    for document in documents() {
        for words in shown(&document) {
            // The longest name that the line begins with.
            let name =
                (1..=words.len().min(2)).rev().map(|n| words[..n].join(" ")).find(|name| commands.contains_key(name));
            let Some(name) = name else { continue };
            let flags = &commands[&name];
            for word in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
                let given = word[2..].split(['=', ',', '"', '\'', ']', ':', '.']).next().unwrap_or_default();
                checked += 1;
                if !flags.contains(given) {
                    wrong.push(format!("outbox-relay {name} has no --{given}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 50, "only {checked} flags were found");
}
