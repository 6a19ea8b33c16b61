//! Creates the data directory of a private server.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::Path;
use std::process::Stdio;

use secrecy::{ExposeSecret, SecretString};

use super::{PostgresError, ServerBinaries, ServerUser, USER};

/// The name of the data directory in the server's directory.
pub(super) const DATA: &str = "data";

/// Runs `initdb` with locale C, UTF-8, and connections by password only.
pub(super) async fn run(
    binaries: &ServerBinaries,
    directory: &Path,
    user: Option<&ServerUser>,
    password: &SecretString,
) -> Result<(), PostgresError> {
    let password_file = directory.join("password");
    write_password(&password_file, user, password)?;
    let mut command = std::process::Command::new(binaries.program("initdb"));
    command
        .args(["--no-sync", "--auth=scram-sha-256", "--locale=C", "--encoding=UTF8", "--username", USER])
        .arg("--pwfile")
        .arg(&password_file)
        .arg("--pgdata")
        .arg(directory.join(DATA))
        .current_dir(directory)
        .stdin(Stdio::null());
    if let Some(user) = user {
        user.run(&mut command);
    }
    let output = tokio::process::Command::from(command).kill_on_drop(true).output().await?;
    fs::remove_file(&password_file)?;
    if !output.status.success() {
        return Err(PostgresError::Initdb(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(())
}

/// Writes the password to a file that only the server's user may read. A command line is visible to everybody.
fn write_password(path: &Path, user: Option<&ServerUser>, password: &SecretString) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, password.expose_secret().as_bytes())?;
    match user {
        Some(user) => chown(path, Some(user.uid()), Some(user.gid())),
        None => Ok(()),
    }
}
