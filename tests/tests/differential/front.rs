//! TLS in front of a server that speaks none: what comes out of it goes on as it is, and so does each end.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::{ServerConfig, ServerConnection};
use socket2::SockRef;
use tests::http::dial;

const PIECE_BYTES: usize = 16 * 1024;

/// Where it listens.
pub fn start(config: &Arc<ServerConfig>, server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let config = config.clone();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let config = config.clone();
            thread::spawn(move || {
                // Whoever is not there any more needs no end.
                let Ok(far) = dial(server) else { return };
                if relay(&near, &far, config).is_err() {
                    for socket in [&near, &far] {
                        let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
                    }
                }
            });
        }
    });
    address
}

/// Until both have ended.
///
/// # Errors
/// One has broken off, as the other is to see too. An end that TLS does not announce is none (RFC 8446 section 6.1).
fn relay(mut near: &TcpStream, mut far: &TcpStream, config: Arc<ServerConfig>) -> io::Result<()> {
    near.set_nodelay(true)?;
    let mut tls = ServerConnection::new(config).map_err(io::Error::other)?;
    let (mut near_ended, mut far_ended, mut far_takes) = (false, false, true);
    let mut piece = [0; PIECE_BYTES];
    while !(near_ended && far_ended) {
        let (near_stirs, far_stirs) = stirred(near, near_ended, far, far_ended)?;
        if near_stirs {
            if tls.read_tls(&mut near)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let taken = tls.process_new_packets();
            flush(&mut tls, near)?;
            taken.map_err(io::Error::other)?;
            loop {
                match tls.reader().read(&mut piece) {
                    Ok(0) => {
                        near_ended = true;
                        far_takes = far_takes && far.shutdown(Shutdown::Write).is_ok();
                        break;
                    }
                    // A server that has refused and closed takes no more, and what it said is still to be read.
                    Ok(read) => far_takes = far_takes && far.write_all(&piece[..read]).is_ok(),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                }
            }
        }
        if far_stirs {
            match far.read(&mut piece)? {
                0 => {
                    far_ended = true;
                    tls.send_close_notify();
                }
                read => tls.writer().write_all(&piece[..read])?,
            }
            flush(&mut tls, near)?;
        }
    }
    Ok(())
}

fn flush(tls: &mut ServerConnection, mut near: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut near)?;
    }
    Ok(())
}

/// Waits for bytes, or for an end, of those that have not ended.
///
/// # Errors
/// One has broken off after its end. HUP means nothing else: no side that has ended is shut down from here as well.
fn stirred(near: &TcpStream, near_ended: bool, far: &TcpStream, far_ended: bool) -> io::Result<(bool, bool)> {
    let of = |ended| if ended { PollFlags::empty() } else { PollFlags::IN };
    let mut polled = [PollFd::new(near, of(near_ended)), PollFd::new(far, of(far_ended))];
    poll(&mut polled, None)?;
    let [near_stirs, far_stirs] = polled.map(|side| !side.revents().is_empty());
    // What breaks is told without being asked for.
    if near_ended && near_stirs || far_ended && far_stirs {
        return Err(ErrorKind::ConnectionReset.into());
    }
    Ok((near_stirs, far_stirs))
}
