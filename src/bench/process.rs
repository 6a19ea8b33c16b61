//! Reads about processes from Linux' `/proc`. On other systems, and for servers on other machines, nothing can be read.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The unit of times in `/proc/<pid>/stat`: `USER_HZ`, 100 on every Linux that Rust supports
/// (<https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>).
const TICK: Duration = Duration::from_millis(10);

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// The CPU time of a process so far, and its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) parent: u32,
    /// The user and system time of the process itself.
    pub(crate) cpu: Duration,
    /// The user and system time of its children that have ended and were waited for.
    pub(crate) ended_children: Duration,
}

/// Reads the usage of a process. Returns `None` if there is no such process or no `/proc`.
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Returns the CPU time of a process and all its children, including ended ones. The value only grows while the process lives.
pub(crate) fn usage_of_family(pid: u32) -> Option<Duration> {
    let own = usage(pid)?;
    let children = pids().filter_map(usage).filter(|child| child.parent == pid);
    Some(children.fold(own.cpu + own.ended_children, |sum, child| sum + child.cpu + child.ended_children))
}

/// Returns the peak of the process's physical memory in bytes.
pub(crate) fn peak_memory(pid: u32) -> Option<u64> {
    parse_peak(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// Returns the command line, its words separated by spaces.
pub(crate) fn command_line(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?.replace('\0', " "))
}

/// Returns the process that listens on a TCP port of this machine, if this user may see it.
pub(crate) fn listener(port: u16) -> Option<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let sockets: HashSet<String> = tables
        .iter()
        .flat_map(|table| listening_inodes(table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let holds = |pid: &u32| open_files(*pid).any(|file| file.to_str().is_some_and(|file| sockets.contains(file)));
    if sockets.is_empty() { None } else { pids().find(holds) }
}

/// Lists the targets of a process's file descriptors.
pub(crate) fn open_files(pid: u32) -> impl Iterator<Item = std::path::PathBuf> {
    let entries = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"));
    entries.into_iter().flatten().flatten().filter_map(|entry| fs::read_link(entry.path()).ok())
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Parses `/proc/<pid>/stat`. The name may hold spaces and parentheses, so fields are counted after the last parenthesis.
fn parse_stat(stat: &str) -> Option<Usage> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The first field here is the state, field 3 of the manual.
    let field = |number: usize| fields.get(number - 3)?.parse::<u32>().ok();
    let ticks = |number| field(number).map(|ticks| TICK * ticks);
    Some(Usage { parent: field(4)?, cpu: ticks(14)? + ticks(15)?, ended_children: ticks(16)? + ticks(17)? })
}

fn parse_peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn listening_inodes(table: &str, port: u16) -> Vec<&str> {
    let inode = |line| {
        let fields: Vec<&str> = str::split_whitespace(line).collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let (_, found) = local.rsplit_once(':')?;
        let is_it = u16::from_str_radix(found, 16) == Ok(port) && *state == LISTENING;
        is_it.then_some(*inode)
    };
    table.lines().skip(1).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_whose_name_looks_like_fields_is_read_right() {
        let stat = "4711 (a) S 1 (b c) R 42 1 1 0 -1 4194560 9 8 7 6 150 50 30 20 20 0 1 0 100 1000 10";
        let ms = Duration::from_millis;
        let expected = Usage { parent: 42, cpu: ms(2000), ended_children: ms(500) };
        assert_eq!(parse_stat(stat), Some(expected));
        assert_eq!(parse_stat("4711 (gone"), None);
        assert_eq!(parse_stat("4711 (short) R 42 1"), None);
    }

    #[test]
    fn the_peak_of_memory_is_in_bytes() {
        assert_eq!(parse_peak("Name:\tx\nVmPeak:\t  9999 kB\nVmHWM:\t   12345 kB\n"), Some(12345 * 1024));
        assert_eq!(parse_peak("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2384 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1
   1: 0100007F:2384 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 222 1
   2: 00000000000000000000000001000000:2385 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 333 1
";
        assert_eq!(listening_inodes(table, 0x2384), ["111"]);
        assert_eq!(listening_inodes(table, 0x2385), ["333"]);
        assert!(listening_inodes(table, 1).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_found_by_the_port_it_listens_on() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(listener(port), Some(std::process::id()));
        assert!(peak_memory(std::process::id()).unwrap() > 100_000);
        assert!(usage_of_family(std::process::id()).is_some());
    }
}
