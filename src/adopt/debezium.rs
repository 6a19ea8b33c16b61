//! Takes over from Debezium's Postgres connector with the outbox event router: reads its configuration, says what becomes of each option, and
//! writes a trigger on the application's outbox table and settings of the relay.
//!
//! The trigger makes the bytes of key and value in SQL, exactly as the connector's converters do, so the relay needs no settings for them and
//! the partition follows from the same key. docs/reference/debezium.md has every option. `just debezium-parity` compares records with those of
//! a real connector and writes them to tests/parity/golden.json, to which the tests hold these bytes.
//!
//! - [`mod@file`]: the connector's file
//! - [`columns`]: the columns of the table, and what the connector makes of their values
//! - [`converter`]: the converters of Kafka Connect
//! - [`pattern`]: regular expressions of topic routes
//! - [`name`]: the check of names that become part of the SQL
//! - [`options`]: options that need no computation
//! - [`mod@plan`]: decides about every option, and writes trigger and settings
//! - [`report`]: the verdicts
//! - [`sql`]: expressions and functions of the trigger

mod columns;
mod converter;
mod file;
mod name;
pub(crate) mod options;
mod pattern;
mod plan;
mod report;
mod sql;

pub(crate) use columns::{Column, Columns, Kind};
pub(crate) use file::Options;
pub(crate) use plan::{Plan, Request, parse_table, plan, table};
pub(crate) use report::Verdict;
