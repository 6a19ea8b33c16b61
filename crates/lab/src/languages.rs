//! Runs the consumers of docs/examples/consumers, and keeps their packages in a cache outside the repository.
//!
//! The cache is keyed by the text of the files that name the packages, so changed files are fetched again.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::demo::cache_directory;
use anyhow::{Context, ensure};

use super::trial::Missing;

/// A program that is ready to run. Dropping it removes its directory.
pub struct Program {
    /// The command, without arguments and environment.
    pub command: Command,
    _directory: Option<tempfile::TempDir>,
}

/// Returns the Java consumer, with `java` and the jars from Maven.
pub fn java() -> anyhow::Result<Program> {
    runs("java", &["-version"])?;
    let packages = fetched("java", &example("java"), &["pom.xml"], |directory| {
        runs("mvn", &["-version"])?;
        run(directory, "mvn", &["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=jars"])
    })?;
    let mut command = Command::new("java");
    command.arg("-cp").arg(packages.join("jars").join("*")).arg(example("java").join("Consume.java"));
    Ok(Program { command, _directory: None })
}

/// Returns the Python consumer, with a virtual environment.
pub fn python() -> anyhow::Result<Program> {
    runs("python3", &["-c", "import ensurepip, venv"])?;
    let packages = fetched("python", &example("python"), &["requirements.txt"], |directory| {
        run(directory, "python3", &["-m", "venv", "venv"])?;
        run(directory, "venv/bin/python", &["-m", "pip", "install", "-q", "-r", "requirements.txt"])
    })?;
    let mut command = Command::new(packages.join("venv/bin/python"));
    // `-B` writes no byte code, so the checkout does not change.
    command.arg("-B").arg(example("python").join("consume.py"));
    Ok(Program { command, _directory: None })
}

/// Returns the Node consumer, with `node_modules`. Node looks for packages beside the module, so it runs from a directory of its own.
pub fn node() -> anyhow::Result<Program> {
    runs("node", &["--eval", "process.exit(process.versions.node.split('.')[0] < 20 ? 1 : 0)"])?;
    let packages = fetched("node", &example("node"), &["package.json"], install_node_packages)?;
    let directory = tempfile::tempdir()?;
    for file in ["consume.js", "package.json"] {
        fs::copy(example("node").join(file), directory.path().join(file))?;
    }
    symlink(packages.join("node_modules"), directory.path().join("node_modules"))?;
    // Node buffers what a pipe does not accept, while the other languages block. This module makes `console.log` block, too.
    let synchronous = directory.path().join("synchronous.cjs");
    fs::write(&synchronous, "console.log = (...words) => require('fs').writeSync(1, words.join(' ') + '\\n');\n")?;
    let mut command = Command::new("node");
    command.arg("--require").arg(synchronous).arg(directory.path().join("consume.js"));
    Ok(Program { command, _directory: Some(directory) })
}

/// The files of the token server.
pub(crate) const TOKEN_SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/token_server");

/// Returns the directory with the packages of the token server.
pub(crate) fn token_server() -> anyhow::Result<PathBuf> {
    runs("node", &["--eval", "process.exit(process.versions.node.split('.')[0] < 20 ? 1 : 0)"])?;
    fetched("token-server", Path::new(TOKEN_SERVER), &["package.json"], install_node_packages)
}

fn install_node_packages(directory: &Path) -> anyhow::Result<()> {
    runs("npm", &["--version"])?;
    run(directory, "npm", &["install", "--silent", "--no-package-lock"])
}

/// Returns the Go consumer, built in the cache.
pub fn go() -> anyhow::Result<Program> {
    runs("go", &["version"])?;
    let packages = fetched("go", &example("go"), &["go.mod", "go.sum", "consume.go"], |directory| {
        run(directory, "go", &["build", "-o", "consume", "."])
    })?;
    Ok(Program { command: Command::new(packages.join("consume")), _directory: None })
}

/// Returns the Go loop of a bench, `consumers` or `peers`, built in the cache.
pub fn go_loop(bench: &str) -> anyhow::Result<Program> {
    runs("go", &["version"])?;
    let source = checkout().join("benches").join(bench).join("go");
    let packages = fetched(&format!("go-loop-{bench}"), &source, &["go.mod", "go.sum", "loop.go"], |directory| {
        run(directory, "go", &["build", "-o", "loop", "."])
    })?;
    Ok(Program { command: Command::new(packages.join("loop")), _directory: None })
}

/// Returns the Rust consumer with a Kafka client of its own.
pub fn rust() -> anyhow::Result<Program> {
    rust_example("consume")
}

/// Returns a Rust example of `event-outbox`, which `cargo test --test main` has not built. Building the whole workspace gives its
/// dependencies the features with which they are built already.
pub fn rust_example(name: &str) -> anyhow::Result<Program> {
    let arguments = ["build", "-q", "--locked", "--workspace", "--all-features", "--example", name];
    run(checkout(), env!("CARGO"), &arguments)?;
    let tests = std::env::current_exe()?;
    let target = tests.parent().and_then(Path::parent).context("no target directory")?;
    Ok(Program { command: Command::new(target.join("examples").join(name)), _directory: None })
}

/// Returns the root of the workspace.
fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn example(language: &str) -> PathBuf {
    checkout().join("docs/examples/consumers").join(language)
}

/// Returns the directory in the cache, and fills it with `fetch` first if these files of `source` have changed.
fn fetched(
    language: &str,
    source: &Path,
    files: &[&str],
    fetch: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let home = || Missing("no home directory to keep packages in".to_owned());
    let cache = cache_directory().ok_or_else(home)?.join("consumers");
    fs::create_dir_all(&cache).with_context(|| format!("{} cannot be written", cache.display()))?;
    // Several suites may run at once. The lock ends with its process.
    let lock = File::create(cache.join(format!("{language}.lock")))?;
    lock.lock()?;
    let directory = cache.join(language);
    let same = |file: &&str| fs::read(source.join(file)).ok() == fs::read(directory.join(file)).ok();
    if directory.exists() && files.iter().all(same) {
        return Ok(directory);
    }
    let staging = tempfile::Builder::new().prefix(language).tempdir_in(&cache)?;
    for file in files {
        fs::copy(source.join(file), staging.path().join(file))?;
    }
    fetch(staging.path())?;
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::rename(staging.keep(), &directory).context("cannot put the packages in place")?;
    Ok(directory)
}

fn run(directory: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let program = if program.contains('/') { directory.join(program) } else { PathBuf::from(program) };
    let output = Command::new(&program).args(arguments).current_dir(directory).stdin(Stdio::null()).output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(output.status.success(), "{} {}: {}", program.display(), arguments.join(" "), said.trim());
    Ok(())
}

/// Runs the program, because finding it is not enough.
fn runs(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Missing(format!("{program} {} ({})", arguments.join(" "), output.status)).into()),
        Err(_) => Err(Missing(format!("{program} not found")).into()),
    }
}
