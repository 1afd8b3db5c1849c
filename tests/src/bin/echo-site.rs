//! A site that says what it hears, on as many connections as it may have descriptors: a test that holds their other ends
//! has none left for these. Prints where it listens, and stays until it is killed.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use tests::process::raise_own_limit;

const EVENTS_MAX: usize = 256;
const READ_BYTES: usize = 64 * 1024;

fn main() -> ExitCode {
    let Err(error) = serve();
    eprintln!("echo-site: {error}");
    ExitCode::from(2)
}

fn serve() -> io::Result<std::convert::Infallible> {
    raise_own_limit();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("Listening: {}", listener.local_addr()?);
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let watch = |socket: &dyn AsFd, number: i32| {
        epoll::add(&set, socket.as_fd(), EventData::new_u64(number as u64), EventFlags::IN)
    };
    watch(&listener, listener.as_raw_fd())?;
    let mut connections: HashMap<i32, TcpStream> = HashMap::new();
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let mut bytes = vec![0; READ_BYTES];
    loop {
        events.clear();
        epoll::wait(&set, spare_capacity(&mut events), None)?;
        for event in &events {
            let number = event.data.u64() as i32;
            let Some(connection) = connections.get_mut(&number) else {
                let (connection, _) = listener.accept()?;
                watch(&connection, connection.as_raw_fd())?;
                connections.insert(connection.as_raw_fd(), connection);
                continue;
            };
            // Whoever writes more than the kernel holds for it reads meanwhile.
            let read = connection.read(&mut bytes).unwrap_or(0);
            if read == 0 || connection.write_all(&bytes[..read]).is_err() {
                connections.remove(&number);
            }
        }
    }
}
