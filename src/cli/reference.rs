//! Runs the hidden `outbox-relay reference PAGE`: prints a generated page of docs/reference. A test compares the pages with it.

use std::fmt::Write;

use clap::{Args, ValueEnum};
use event_outbox::Names;
use event_outbox::code::Code;
use event_outbox::schema;

use super::output::text;
use crate::adopt::debezium::{Verdict, options};
use crate::config::SETTINGS;
use crate::observe::metrics::Metrics;

/// The width of the help texts in columns.
const WIDTH: usize = 110;

/// A generated page of docs/reference.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Page {
    Settings,
    Codes,
    Commands,
    Metrics,
    Sql,
    Debezium,
}

/// The hidden command that prints one page.
#[derive(Debug, Args)]
pub(crate) struct Reference {
    page: Page,
}

impl Reference {
    pub(crate) fn run(&self) {
        text(&match self.page {
            Page::Settings => settings(),
            Page::Codes => codes(),
            Page::Commands => commands(),
            Page::Metrics => metrics(),
            Page::Sql => sql(),
            Page::Debezium => debezium(),
        });
    }
}

fn settings() -> String {
    let mut page = "| setting | default | accepts | meaning |\n|---|---|---|---|\n".to_owned();
    for setting in SETTINGS {
        let default = setting.default.map_or_else(String::new, |default| format!("`{default}`"));
        let (accepts, doc) = (cell(&setting.kind.accepted()), cell(setting.doc));
        let _ = writeln!(page, "| `{}` | {default} | {accepts} | {doc} |", setting.env_name());
    }
    page
}

fn codes() -> String {
    let mut page = "| code | name | meaning |\n|---|---|---|\n".to_owned();
    for code in Code::ALL {
        let anchor = format!("{code}-{}", code.name()).to_lowercase();
        let (name, meaning) = (code.name(), cell(code.meaning()));
        let _ = writeln!(page, "| [{code}](../how-to/runbook.md#{anchor}) | {name} | {meaning} |");
    }
    page
}

/// Returns the help of every command, in the order of `--help`.
fn commands() -> String {
    let mut page = String::new();
    let mut root = super::command().term_width(WIDTH);
    root.build();
    help(&mut page, &mut root);
    page
}

fn help(page: &mut String, command: &mut clap::Command) {
    let name = command.get_bin_name().unwrap_or("outbox-relay").to_owned();
    let text = command.render_long_help().to_string();
    let text: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
    let _ = write!(page, "## {name}\n\n```text\n{}\n```\n\n", text.join("\n"));
    for command in command.get_subcommands_mut() {
        if !command.is_hide_set() && command.get_name() != "help" {
            help(page, command);
        }
    }
}

fn metrics() -> String {
    let mut page = "| metric | kind | labels | meaning |\n|---|---|---|---|\n".to_owned();
    let text = Metrics::with_samples().render().unwrap_or_default();
    let lines = || text.lines();
    for (name, meaning) in lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' ')) {
        let kind = lines().find_map(|line| line.strip_prefix("# TYPE ")?.strip_prefix(name)?.strip_prefix(' '));
        let sample = lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once('}'));
        let labels = sample.map_or("", |(labels, _)| labels).split(',').filter_map(|label| label.split_once('='));
        let labels: Vec<&str> = labels.map(|(label, _)| label).collect();
        let (kind, labels, meaning) = (kind.unwrap_or_default(), labels.join(", "), cell(meaning));
        let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {meaning} |");
    }
    page
}

/// Lists the objects that the migrations create and do not drop later, in order of creation.
fn sql() -> String {
    let script = schema::print(&Names::default(), schema::DEFAULT_LANES, None);
    let mut objects: Vec<(&str, String)> = Vec::new();
    for line in script.lines() {
        let mut words = line.split_whitespace().filter(|word| !PASSED_OVER.contains(word));
        let (Some(verb), Some(kind)) = (words.next(), words.next()) else { continue };
        let name = || words.clone().next().and_then(|word| word.split(['(', ';']).next()).unwrap_or_default();
        let name = || name().rsplit('.').next().unwrap_or_default().replace('"', "");
        match verb {
            "create" if KINDS.contains(&kind) && !objects.contains(&(kind, name())) => objects.push((kind, name())),
            "drop" => objects.retain(|object| *object != (kind, name())),
            _ => {}
        }
    }
    let mut page = "| object | kind |\n|---|---|\n".to_owned();
    for (kind, name) in objects {
        let _ = writeln!(page, "| `{name}` | {kind} |");
    }
    page
}

/// Lists the options of a Debezium connector with what becomes of them.
fn debezium() -> String {
    let mut page = "| option | what becomes of it |\n|---|---|\n".to_owned();
    for (name, text) in options::COMPUTED {
        let _ = writeln!(page, "| `{name}` | {} |", cell(text));
    }
    for known in options::KNOWN {
        let verdict = match known.verdict {
            Verdict::Kept => "kept",
            Verdict::Differs => "differs",
            Verdict::Refused => "refused",
        };
        let _ = writeln!(page, "| `{}` | {verdict}: {} |", known.name, cell(known.text));
    }
    page
}

/// The kinds of objects that a migration creates.
const KINDS: [&str; 5] = ["table", "view", "index", "function", "trigger"];

/// The words between `create` and the object's name.
const PASSED_OVER: [&str; 7] = ["or", "replace", "unique", "if", "not", "exists", "concurrently"];

/// Escapes text for a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}
