//! Who holds the other end of a connection on loopback, as procfs tells it.

use std::fs;
use std::net::TcpStream;

use crate::process::is_closed_to_us;

/// The descriptor by which a process holds the other end.
pub fn held_as(process: u32, socket: &TcpStream) -> Option<u32> {
    // Its own port alone may be that of other connections too.
    let [near, far] = [socket.peer_addr(), socket.local_addr()].map(|end| format!(":{:04X}", end.unwrap().port()));
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row[1].ends_with(&near) && row[2].ends_with(&far));
    let name = format!("socket:[{}]", row.expect("the connection is there")[9]);
    descriptors(process)
        .into_iter()
        .find(|(_, target)| *target == name)
        .map(|(fd, _)| fd)
}

/// The epoll set in which a process watches the other end: a shard has one for all its sockets. None if it does not hold
/// it, or the process is closed to us.
pub fn watched_by(process: u32, socket: &TcpStream) -> Option<u32> {
    if is_closed_to_us(process) {
        return None;
    }
    let watched = held_as(process, socket)?.to_string();
    let sets = descriptors(process)
        .into_iter()
        .filter(|(_, target)| target == "anon_inode:[eventpoll]");
    sets.map(|(set, _)| set).find(|set| {
        let text = fs::read_to_string(format!("/proc/{process}/fdinfo/{set}")).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("tfd:"));
        lines.any(|line| line.split_whitespace().next() == Some(&watched))
    })
}

/// What is open, by number.
fn descriptors(process: u32) -> Vec<(u32, String)> {
    let fds = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    fds.filter_map(|fd| {
        let fd = fd.ok()?;
        let target = fs::read_link(fd.path()).ok()?;
        Some((fd.file_name().to_str()?.parse().ok()?, target.to_str()?.to_owned()))
    })
    .collect()
}
