//! Compares the JSON of commands with the schemas in `docs/reference/schemas`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Context, anyhow, ensure};
use jsonschema::{Registry, Validator};
use serde_json::Value;

/// The file with the nouns that the other schemas refer to.
const COMMON: &str = "common";

/// The schemas by the name of their command, such as `dead-list`.
static SCHEMAS: LazyLock<Result<BTreeMap<String, Validator>, String>> =
    LazyLock::new(|| read().map_err(|error| format!("{error:#}")));

fn read() -> anyhow::Result<BTreeMap<String, Validator>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/schemas");
    let mut schemas: BTreeMap<String, Value> = BTreeMap::new();
    for file in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = file?.path();
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).context("a name")?;
        let schema = serde_json::from_slice(&std::fs::read(&path)?).with_context(|| path.display().to_string())?;
        schemas.insert(name, schema);
    }
    let common = schemas.remove(COMMON).context("common.json is missing")?;
    // A reference is resolved against the base address, which stands for the directory.
    let base = "json-schema:///schemas/";
    let registry = Registry::new().add(format!("{base}{COMMON}.json"), common)?.prepare()?;
    schemas
        .into_iter()
        .map(|(name, schema)| {
            let options = jsonschema::options().with_registry(&registry).should_validate_formats(true);
            let validator = options.with_base_uri(format!("{base}{name}.json")).build(&schema);
            Ok((name.clone(), validator.map_err(|error| anyhow!("{name}.json: {error}"))?))
        })
        .collect()
}

/// Checks the output of a command against its schema, document by document. `words` is the command line.
///
/// # Errors
/// Returns the first differences.
pub fn check(words: &[&str], stdout: &str) -> anyhow::Result<()> {
    let schemas = SCHEMAS.as_ref().map_err(|error| anyhow!("{error}"))?;
    let named = |count: usize| words.get(..count).map(|words| words.join("-"));
    let name = [named(2), named(1)].into_iter().flatten().find(|name| schemas.contains_key(name));
    let name = name.with_context(|| format!("docs/reference/schemas has no schema of {words:?}"))?;
    for document in serde_json::Deserializer::from_str(stdout).into_iter::<Value>() {
        let document = document.with_context(|| format!("{words:?} prints {stdout}"))?;
        let differences = schemas[&name].iter_errors(&document);
        let differences: Vec<_> =
            differences.map(|error| format!("{}: {error}", error.instance_path())).take(5).collect();
        ensure!(differences.is_empty(), "{words:?} differs from {name}.json:\n{}", differences.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Collects the places of objects whose members a schema lists without saying that there are no others.
    fn loose(schema: &Value, place: &str, found: &mut Vec<String>) {
        match schema {
            Value::Object(members) => {
                let is_object =
                    members.contains_key("properties") || members.get("type") == Some(&Value::from("object"));
                if is_object && !members.contains_key("additionalProperties") {
                    found.push(place.to_owned());
                }
                members.iter().for_each(|(name, member)| loose(member, &format!("{place}/{name}"), found));
            }
            Value::Array(items) => items.iter().for_each(|item| loose(item, place, found)),
            _ => {}
        }
    }

    #[test]
    fn every_schema_lists_all_members() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/schemas");
        let (mut found, mut files) = (Vec::new(), 0);
        for file in std::fs::read_dir(directory).expect("the schemas") {
            let path = file.expect("a file").path();
            let schema = serde_json::from_slice(&std::fs::read(&path).expect("a schema")).expect("JSON");
            loose(&schema, &path.file_name().expect("a name").to_string_lossy(), &mut found);
            files += 1;
        }
        assert!(found.is_empty() && files > 20, "members that are not listed would pass in {found:#?}");
    }
}
