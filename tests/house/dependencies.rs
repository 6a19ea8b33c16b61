//! Checks that the `[dependencies]` of the documents are those that the program beside them needs, in the versions of the workspace. The
//! program itself is an example of the library, so it is compiled with it.

use std::path::Path;

const PAGE: &str = "docs/how-to/consume-in-rust.md";
const PROGRAM: &str = "docs/examples/consumers/rust/minimal.rs";

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a file of the repository")
}

/// Returns name and version of each line of a manifest that names a dependency.
fn dependencies(manifest: &str) -> Vec<(&str, &str)> {
    let dependency = |line: &'_ str| -> Option<(usize, usize, usize)> {
        let equals = line.find(" = ")?;
        let quoted = line[equals..].strip_prefix(" = \"").map(|_| equals + 4);
        let from = quoted.or_else(|| line.find("version = \"").map(|at| at + "version = \"".len()))?;
        Some((equals, from, from + line[from..].find('"')?))
    };
    let lines = manifest.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()));
    lines.filter_map(|line| dependency(line).map(|(name, from, to)| (&line[..name], &line[from..to]))).collect()
}

#[test]
fn the_documented_dependencies_are_those_of_the_minimal_program() {
    let (page, program, workspace) = (read(PAGE), read(PROGRAM), read("Cargo.toml"));
    let listed = page.split("```toml\n[dependencies]\n").nth(1).and_then(|rest| rest.split("```").next());
    let listed = dependencies(listed.expect("a list of dependencies"));
    let (known, _) = workspace.split_once("[features]").expect("the features");
    let known = dependencies(known);
    let version = known.iter().find(|(name, _)| *name == "version").map(|(_, version)| *version).expect("a version");
    for (name, wanted) in &listed {
        let ours = known.iter().find(|(known, _)| known == name).map_or("", |(_, ours)| *ours);
        let ours = if *name == "event-outbox" { version } else { ours };
        assert!(
            ours == *wanted || ours.starts_with(&format!("{wanted}.")),
            "{name} {wanted} is not the {ours} of the workspace"
        );
        let used = program.contains(&format!("{}::", name.replace('-', "_"))) || program.contains(&format!("{name}::"));
        assert!(used, "{name} is listed, and the program does not use it");
    }
    for (name, _) in &known {
        let uses = program.contains(&format!("{}::", name.replace('-', "_")));
        assert!(
            !uses || listed.iter().any(|(listed, _)| listed == name),
            "the program uses {name}, which is not listed"
        );
    }
    assert_eq!(listed.len(), 4, "{listed:?}");
}
