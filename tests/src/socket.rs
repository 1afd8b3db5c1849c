//! Connections on loopback: who holds the other end, as procfs tells it, and what joins two of them.

use std::net::{Shutdown, TcpStream};
use std::{fs, io, thread};

use crate::process::{descriptors, is_closed_to_us};

/// The descriptor by which a process holds the other end.
pub fn held_as(process: u32, socket: &TcpStream) -> Option<u32> {
    // Its own port alone may be that of other connections too.
    let [near, far] = [socket.peer_addr(), socket.local_addr()].map(|end| format!(":{:04X}", end.unwrap().port()));
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row[1].ends_with(&near) && row[2].ends_with(&far));
    let name = format!("socket:[{}]", row.expect("the connection is there")[9]);
    descriptors(process)
        .expect("procfs of a live process")
        .into_iter()
        .find(|(_, target)| target.as_os_str() == name.as_str())
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
        .expect("procfs of a live process")
        .into_iter()
        .filter(|(_, target)| target.as_os_str() == "anon_inode:[eventpoll]");
    sets.map(|(set, _)| set).find(|set| {
        let text = fs::read_to_string(format!("/proc/{process}/fdinfo/{set}")).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("tfd:"));
        lines.any(|line| line.split_whitespace().next() == Some(&watched))
    })
}

/// Carries bytes both ways between two connections, each way to its end.
pub fn join(near: TcpStream, far: TcpStream) {
    let dup = |socket: &TcpStream| socket.try_clone().expect("a descriptor");
    for (mut from, mut to) in [(dup(&near), dup(&far)), (far, near)] {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}
