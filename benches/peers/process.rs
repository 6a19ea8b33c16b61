//! Reads CPU time and memory of a process from Linux' `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// The unit of times in `/proc`: `USER_HZ` is 100 on every Linux that Rust supports.
const TICK: Duration = Duration::from_millis(10);

/// Returns the user and system time of all threads so far.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    Ok(TICK * (field(pid, 14)? + field(pid, 15)?))
}

/// Returns the user and system time of a server and its children, including ended ones.
pub(crate) fn cpu_of_family(pid: u32) -> anyhow::Result<Duration> {
    let mut sum = cpu(pid)? + TICK * (field(pid, 16)? + field(pid, 17)?);
    for entry in fs::read_dir("/proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A child that ends during the loop is counted with its parent the next time.
        if field(child, 4).is_ok_and(|parent| parent == pid) {
            sum += cpu(child).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// Returns a field of `/proc/<pid>/stat` by its number in the manual.
fn field(pid: u32, number: usize) -> anyhow::Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may contain spaces; the state, field 3, follows.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    rest.split_whitespace().nth(number - 3).context("stat is short")?.parse().context("stat")
}

/// Returns the peak of the process's physical memory in bytes.
pub(crate) fn peak_memory(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}
