//! Reads libpq's files of connections: the service file and the password file.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::config::pem;

/// The directory of `pg_service.conf` for all users, unless `PGSYSCONFDIR` names another. Debian's is the first.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/etc"];

/// Reads the parameters of a service from the first of libpq's files that has it.
///
/// # Errors
/// Returns the problem of a file, or that no file has the service.
pub(super) fn service(name: &str, env: &BTreeMap<String, String>) -> Result<Vec<(String, String)>, String> {
    let named = env.get("PGSERVICEFILE").map(PathBuf::from);
    let own = named.clone().or_else(|| env.get("HOME").map(|home| Path::new(home).join(".pg_service.conf")));
    let shared = match env.get("PGSYSCONFDIR") {
        Some(directory) => vec![directory.as_str()],
        None => SYSTEM_DIRECTORIES.to_vec(),
    };
    let shared = shared.into_iter().map(|directory| Path::new(directory).join("pg_service.conf"));
    for file in own.into_iter().chain(shared) {
        let described = |problem: &str| format!("the service file {} {problem}", file.display());
        match pem::read(&file) {
            Ok(bytes) => {
                if let Some(found) = section(&String::from_utf8_lossy(&bytes), name) {
                    return found.map_err(|problem| described(&problem));
                }
            }
            // Only the file that somebody named must be there.
            Err(error) if named.as_ref() == Some(&file) => {
                return Err(described(&format!("cannot be read: {}", pem::reason(&error))));
            }
            Err(_) => {}
        }
    }
    Err("no service file defines its service: set PGSERVICEFILE to the file, or write ~/.pg_service.conf".to_owned())
}

/// Returns the lines `name=value` of the section `[service]`; `None` if there is no such section.
fn section(text: &str, service: &str) -> Option<Result<Vec<(String, String)>, String>> {
    let header = format!("[{service}]");
    let mut lines = text.lines().map(str::trim).skip_while(|line| *line != header);
    lines.next()?;
    let lines = lines.take_while(|line| !line.starts_with('['));
    let pairs =
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| match line.split_once('=') {
            Some(("service", _)) => Err("names another service, which libpq refuses as well".to_owned()),
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err("has a line without name=value".to_owned()),
        });
    Some(pairs.collect())
}

/// The entries of a password file.
#[derive(Default)]
pub(super) struct PasswordFile(Vec<[String; 5]>);

impl PasswordFile {
    /// Reads the file that the connection names, or else `~/.pgpass`. A default file that cannot be used is ignored, as libpq does.
    ///
    /// # Errors
    /// Returns the problem of a file that was named.
    pub(super) fn read(named: Option<&str>, env: &BTreeMap<String, String>) -> Result<Self, String> {
        let default = || env.get("HOME").map(|home| Path::new(home).join(".pgpass"));
        let Some(file) = named.map(PathBuf::from).or_else(default) else { return Ok(Self::default()) };
        match (read_private(&file), named) {
            (Ok(text), _) => Ok(Self(text.lines().filter_map(entry).collect())),
            (Err(_), None) => Ok(Self::default()),
            (Err(problem), Some(_)) => Err(format!("its passfile {:?} {problem}", file.display().to_string())),
        }
    }

    /// Returns the password of the first entry that matches. `hosts` are the names that stand for the server.
    pub(super) fn password(&self, hosts: &[String], port: u16, database: &str, user: &str) -> Option<&str> {
        let port = port.to_string();
        let is = |field: &str, value: &str| field == "*" || field == value;
        let matching = self.0.iter().find(|[host, of_port, of_database, of_user, _]| {
            (host == "*" || hosts.contains(host))
                && is(of_port, &port)
                && is(of_database, database)
                && is(of_user, user)
        });
        matching.map(|entry| entry[4].as_str())
    }
}

fn read_private(file: &Path) -> Result<String, String> {
    let cannot = |error: &std::io::Error| format!("cannot be read: {}", pem::reason(error));
    let bytes = pem::read(file).map_err(|error| cannot(&error))?;
    let mode = std::fs::metadata(file).map_err(|error| cannot(&error))?.permissions().mode();
    match mode & 0o077 {
        0 => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        _ => Err("may be read by others, so libpq would ignore it: chmod 600".to_owned()),
    }
}

/// Reads `host:port:database:user:password`. A backslash takes the next character as it is.
fn entry(line: &str) -> Option<[String; 5]> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        let last = fields.len() - 1;
        match character {
            '\\' => fields[last].extend(characters.next()),
            ':' if last < 4 => fields.push(String::new()),
            character => fields[last].push(character),
        }
    }
    fields.try_into().ok().filter(|fields: &[String; 5]| !fields[4].is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_that_matches_gives_the_password() {
        let text =
            "# h:5432:app:relay:no\nh:5433:app:relay:second\nh:5432:*:relay:a\\:b\\\\c:d\n*:*:*:*:last\nbroken\n";
        let file = PasswordFile(text.lines().filter_map(entry).collect());
        let of = |host: &str, port| file.password(&[host.to_owned()], port, "app", "relay").unwrap().to_owned();
        assert_eq!(of("h", 5432), "a:b\\c:d");
        assert_eq!(of("h", 5433), "second");
        assert_eq!(of("other", 5432), "last");
    }

    #[test]
    fn a_section_ends_with_the_next_one() {
        let text = "[a]\nhost=h1\n# no\n\n[b]\nhost=h2\nport=1\n[c]\nservice=a\n[d]\nnonsense\n";
        let read = |service| section(text, service);
        assert_eq!(read("b"), Some(Ok(vec![("host".into(), "h2".into()), ("port".into(), "1".into())])));
        assert_eq!(read("e"), None);
        assert!(read("c").unwrap().is_err() && read("d").unwrap().is_err());
    }
}
