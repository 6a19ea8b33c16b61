//! Checks the sources and documents of the workspace for rules that the compiler does not check. Starts no server.
//!
//! - `floors`: which folder may import which
//! - `codes`: the codes of warnings and errors, in the sources and in the runbook; `notices`: the names of log lines
//! - `dependencies`: those that the documents list for a program
//! - `documented_commands`: the commands and flags in the documents
//! - `log_lines`: how long a message is, and how numbers and names are written
//! - `operations`: the names that runbook, dashboard, alerts and metrics share
//! - `reference`: the pages of docs/reference that the binary writes

mod codes;
mod dependencies;
mod documented_commands;
mod floors;
mod log_lines;
mod notices;
mod operations;
mod reference;
