//! What processes use: CPU time, memory, descriptors.

use std::fs;
use std::io;
use std::time::Duration;

/// CPU time of a process so far, all threads: utime + stime of `/proc/PID/stat` before the kernel rounds it to ticks.
pub fn cpu(pid: i32) -> io::Result<Duration> {
    let mut clock = 0;
    // SAFETY: plain old data that the calls fill.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) != 0 || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed {
        return Err(io::Error::other(format!("process {pid} is gone")));
    }
    Ok(Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32))
}

/// CPU time of this thread so far.
pub fn thread() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// Proportional set size in bytes; none where the kernel does not show it.
pub fn memory(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

pub fn descriptors(pid: i32) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64)
}

/// CPU time that the whole machine spent on anything so far, all cores, interrupts and what the hypervisor took included.
pub fn machine() -> Duration {
    const TICK: Duration = Duration::from_millis(10);
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u32> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal
    let busy: u32 = [0, 1, 2, 5, 6, 7].iter().filter_map(|field| ticks.get(*field)).sum();
    TICK * busy
}

/// CPU time of this process: clients, site and long line.
pub fn own() -> Duration {
    cpu(std::process::id().cast_signed()).unwrap_or_default()
}
