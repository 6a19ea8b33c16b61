//! Reads the CPU time and the memory of a process, as Linux counts them.

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// The clock ticks of a second in `/proc/<pid>/stat`; fixed on Linux.
const TICKS_PER_SECOND: u64 = 100;

/// Returns the CPU time that the process has used, user and system together.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process")?;
    // The name in parentheses may hold spaces. utime and stime are the 12th and 13th field after the name.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Returns the largest resident memory that the process has had, in bytes.
pub fn peak_memory(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}
