//! Keeps what a real connector wrote, in golden.json: for each case the records of the first writer's first round.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

use super::cases::Case;
use super::records::Sent;

/// The records that a real connector wrote.
pub(crate) struct Golden {
    /// The programs that wrote them, with their versions.
    pub(crate) versions: BTreeMap<String, String>,
    /// The partitions of each topic.
    pub(crate) partitions: i32,
    /// The records by the name of the case, in the order in which they were written.
    pub(crate) cases: BTreeMap<String, Vec<Sent>>,
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden.json")
}

impl Golden {
    /// Reads golden.json.
    ///
    /// # Errors
    /// Returns an error if there is no such file or if it has another form.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let text = fs::read_to_string(path()).context("tests/parity/golden.json: just debezium-parity writes it")?;
        let mut golden: Value = serde_json::from_str(&text)?;
        let mut part = |name: &str| golden[name].take();
        let versions = serde_json::from_value(part("versions"))?;
        let partitions = serde_json::from_value(part("partitions"))?;
        let mut cases: BTreeMap<String, Vec<Sent>> = serde_json::from_value(part("cases"))?;
        for records in cases.values_mut() {
            for (n, record) in (0..).zip(records) {
                record.offset = n;
            }
        }
        Ok(Self { versions, partitions, cases })
    }

    /// Writes golden.json, with a line for each record.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let mut cases = Vec::new();
        for (name, records) in &self.cases {
            let lines = records.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
            cases.push(format!("{}: [\n{}\n]", json!(name), lines.join(",\n")));
        }
        let versions = serde_json::to_string(&self.versions)?;
        let text = format!(
            "{{\n\"versions\": {versions},\n\"partitions\": {},\n\"cases\": {{\n{}\n}}\n}}\n",
            self.partitions,
            cases.join(",\n")
        );
        fs::write(path(), text)?;
        Ok(())
    }

    /// Returns the records of the first writer's first round, in the order in which they were written.
    pub(crate) fn first_round(case: &Case, mut records: Vec<Sent>) -> Vec<Sent> {
        records.retain(|record| case.is_of_first_round(record.id()));
        records.sort_by(|a, b| (&a.topic, a.partition, a.offset).cmp(&(&b.topic, b.partition, b.offset)));
        records
    }
}
