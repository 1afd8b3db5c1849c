//! What a process holds in its memory.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::process::is_closed_to_us;

/// Of an entry of pagemap (proc_pid_pagemap(5)): the page is in memory, or swapped.
const THERE: u64 = 3 << 62;

/// Whether the memory that a process can write holds these bytes; false if it [`is_closed_to_us`].
pub fn holds(id: u32, bytes: &[u8]) -> bool {
    if is_closed_to_us(id) {
        return false;
    }
    let open = |file| File::open(format!("/proc/{id}/{file}")).expect("a process that is open to us");
    let (memory, pagemap) = (open("mem"), open("pagemap"));
    let maps = fs::read_to_string(format!("/proc/{id}/maps")).expect("procfs of a live process");
    let mut there = maps
        .lines()
        .filter_map(writable)
        .flat_map(|range| present(&pagemap, range));
    there.any(|range| {
        let mut held = vec![0; (range.end - range.start) as usize];
        // What has gone meanwhile is not there any more.
        let read = memory.read_at(&mut held, range.start).unwrap_or(0);
        let mut starts = held[..read].iter().enumerate().filter(|(_, byte)| **byte == bytes[0]);
        starts.any(|(at, _)| held[at..read].starts_with(bytes))
    })
}

/// The addresses of a line of `maps`.
fn writable(line: &str) -> Option<Range<u64>> {
    let (addresses, rest) = line.split_once(' ')?;
    let (start, end) = addresses.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?).filter(|_| rest.starts_with("rw"))
}

/// The parts of a range that take memory: much more is only reserved.
fn present(pagemap: &File, range: Range<u64>) -> Vec<Range<u64>> {
    // SAFETY: it only tells a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.cast_unsigned();
    let pages = (range.end - range.start) / page;
    let mut entries = vec![0; pages as usize * 8];
    let known = pagemap.read_at(&mut entries, range.start / page * 8).unwrap_or(0);
    let mut parts: Vec<Range<u64>> = Vec::new();
    for (number, entry) in entries[..known].chunks_exact(8).enumerate() {
        if u64::from_ne_bytes(entry.try_into().expect("8 bytes")) & THERE == 0 {
            continue;
        }
        let start = range.start + number as u64 * page;
        match parts.last_mut() {
            Some(part) if part.end == start => part.end += page,
            _ => parts.push(start..start + page),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::Process;

    #[test]
    fn what_a_process_holds_is_found() {
        // Two halves in what it was given, one word in what it holds.
        let script = "read -r word <<< \"$1$2\"; echo ready; sleep 60 & wait";
        let process = Process::start(Command::new("bash").args(["-c", script, "bash", "pla", "nted"]));
        process.line("ready", |line| (line == "ready").then_some(()));
        assert!(holds(process.id(), b"planted"));
        assert!(!holds(process.id(), b"plan-not-planted"));
    }
}
