//! Checks which folder may import which: imports point down only, and no two files import each other, directly or through others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::log_lines::sources_below;

/// The folders of the relay, from the top to the bottom. A folder may import the folders of the floors below, and the ones named beside it.
const FLOORS: &[&[(&str, &[&str])]] = &[
    &[("cli", &["bench"]), ("bench", &[])],
    &[("relay", &["inspect"]), ("inspect", &["resend"]), ("resend", &[]), ("adopt", &[])],
    &[("store", &[]), ("sink", &[]), ("observe", &[])],
    &[("config", &[]), ("fault", &[]), ("lane", &[])],
    &[("text", &[])],
];

/// The crates to check: the relay, the library crate, and the test kit for the demo and the bench.
const CRATES: [&str; 3] = [".", "crates/event-outbox", "crates/lab"];

/// A module by its path, such as `store::claim`.
type Module = Vec<String>;

/// Returns the modules of a crate with the imports of each.
fn imports(of: &str) -> BTreeMap<Module, BTreeSet<Module>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join(of).join("src");
    let files = sources_below(&src);
    let module = |path: &Path| -> Module {
        let path = path.strip_prefix(&src).expect("a file of src").with_extension("");
        let parts: Module = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if ["lib", "main"].contains(&parts.join("/").as_str()) { Vec::new() } else { parts }
    };
    let known: BTreeSet<Module> = files.iter().map(|(path, _)| module(path)).collect();
    let of_file = |(path, text): &(std::path::PathBuf, String)| {
        let own = module(path);
        let mut found = BTreeSet::new();
        for path in paths(text) {
            let mut target: Module = match path.first().map(String::as_str) {
                Some("crate") => path[1..].to_vec(),
                Some("self") => [&own[..], &path[1..]].concat(),
                Some("super") => {
                    let ups = path.iter().take_while(|part| *part == "super").count();
                    [&own[..own.len().saturating_sub(ups)], &path[ups..]].concat()
                }
                _ => continue,
            };
            while !target.is_empty() && !known.contains(&target) {
                target.pop();
            }
            if !target.is_empty() && target != own {
                found.insert(target);
            }
        }
        (own, found)
    };
    files.iter().map(of_file).collect()
}

/// Returns every path of the text that begins with `crate`, `self` or `super`, with braces resolved.
fn paths(text: &str) -> Vec<Module> {
    let mut found = Vec::new();
    for start in ["crate::", "self::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let before = text[..at].chars().next_back();
            if before.is_some_and(|before| before.is_alphanumeric() || before == '_' || before == ':') {
                continue;
            }
            collect(&text[at..], &mut Vec::new(), &mut found);
        }
    }
    found
}

/// Reads one path, or a group in braces, from the beginning of the text; returns the rest of the text.
fn collect<'t>(text: &'t str, prefix: &mut Module, found: &mut Vec<Module>) -> &'t str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = collect(rest, &mut prefix.clone(), found).trim_start();
            match rest.strip_prefix(',') {
                Some(next) if !next.trim_start().starts_with('}') => rest = next,
                Some(next) => return next.trim_start().strip_prefix('}').unwrap_or(next),
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|next: char| !(next.is_alphanumeric() || next == '_')).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    if word.is_empty() {
        found.push(prefix.clone());
        return rest;
    }
    if word != "self" || prefix.is_empty() {
        prefix.push(word.to_owned());
    }
    match rest.strip_prefix("::") {
        Some(next) => collect(next, prefix, found),
        None => {
            found.push(prefix.clone());
            let alias = rest.trim_start().strip_prefix("as ");
            alias.map_or(rest, |alias| alias.trim_start_matches(|next: char| next.is_alphanumeric() || next == '_'))
        }
    }
}

/// Returns the modules that can be reached from `from`.
fn reached(graph: &BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> BTreeSet<Module> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for next in graph.get(module).into_iter().flatten() {
            if found.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    found
}

#[test]
fn no_two_modules_import_each_other() {
    let mut circles = Vec::new();
    for name in CRATES {
        let graph = imports(name);
        assert!(graph.len() > 15, "only {} modules in {name}", graph.len());
        let in_circle = |module: &&Module| reached(&graph, module).contains(*module);
        circles.extend(graph.keys().filter(in_circle).map(|module| format!("{name}: {}", module.join("::"))));
    }
    assert!(circles.is_empty(), "modules that import each other around a corner:\n{}", circles.join("\n"));
}

#[test]
fn folders_import_the_floors_below() {
    let floor = |folder: &str| FLOORS.iter().position(|floor| floor.iter().any(|(name, _)| *name == folder));
    let beside = |folder: &str| {
        let all = FLOORS.iter().flat_map(|floor| floor.iter());
        all.clone().find(|(name, _)| *name == folder).map_or(&[][..], |(_, beside)| *beside)
    };
    let mut wrong = Vec::new();
    for (module, imported) in &imports(".") {
        let Some(from) = module.first() else { continue };
        let Some(own) = floor(from) else { panic!("the folder {from} has no floor yet") };
        for to in imported.iter().filter_map(|module| module.first()).filter(|to| *to != from) {
            let is_below = floor(to).is_some_and(|floor| floor > own);
            if !is_below && !beside(from).contains(&to.as_str()) {
                wrong.push(format!("{} imports {to}", module.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that do not point down:\n{}", wrong.join("\n"));
}

#[test]
fn paths_are_read_as_rust_reads_them() {
    let found = |text: &str| paths(text).iter().map(|path| path.join("::")).collect::<Vec<_>>();
    assert_eq!(
        found("use crate::a::{self, b::C, d::{e, F as G}};"),
        ["crate::a", "crate::a::b::C", "crate::a::d::e", "crate::a::d::F"]
    );
    assert_eq!(found("use super::super::x; let y = crate::z::w(1);"), ["crate::z::w", "super::super::x"]);
    assert_eq!(found("event_outbox::crate_name; my_crate::x"), Vec::<String>::new());
}
