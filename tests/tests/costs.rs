//! What browsers and sites send that is meant to be dear: 200 connections at a time, held open. It costs either program at
//! most four times what was sent, and 64 KiB a stream.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tests::both_drivers;
use tests::cloud::{Cloud, Driver, fault_lasts};
use tests::http::dial;
use tests::origin::Origin;
use tests::process::{memory_bytes, raise_own_limit};

both_drivers![what_is_sent_is_not_multiplied];

const CONNECTIONS: usize = 200;
const STREAM_BYTES: u64 = 64 * 1024;
const TIMES: u64 = 4;
/// Memory is looked at for so long once all was sent.
const LOOK: Duration = Duration::from_millis(300);
/// Buffers of the test's own sockets: what the kernel holds is nobody's memory here.
const SOCKET_BYTES: usize = 16 * 1024;

/// One connection's part.
struct Attack {
    what: &'static str,
    /// `SITE` stands for the site's address.
    request: String,
    /// As many bytes a write; 0 for all at once.
    step: usize,
    /// None if no site is reached.
    answer: Option<Vec<u8>>,
}

fn attacks() -> Vec<Attack> {
    let get = "GET http://SITE/ HTTP/1.1\r\nHost: x\r\n";
    let chunked = "POST http://SITE/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extended = format!("1;{}\r\nx\r\n", "e".repeat(4_000)).repeat(8);
    let tiny = "1\r\nx\r\n".repeat(5_000);
    let unread = |what, request: String, step| Attack {
        what,
        request,
        step,
        answer: Some(Vec::new()),
    };
    let unfinished = |what, request: String, step| Attack {
        what,
        request,
        step,
        answer: None,
    };
    let answered = |what, request: &str, step, answer: String| Attack {
        what,
        request: request.to_owned(),
        step,
        answer: Some(answer.into_bytes()),
    };
    let whole = format!("{get}\r\n");
    let field = |length: usize| format!("X: {}", "a".repeat(length));
    vec![
        unfinished("many fields", format!("{get}{}", "a:\r\n".repeat(120)), 0),
        unfinished("many fields, byte by byte", format!("{get}{}", "a:\r\n".repeat(120)), 1),
        unfinished("one long line", format!("{get}{}", field(64_000)), 0),
        unfinished("one long line in small writes", format!("{get}{}", field(64_000)), 500),
        unread("a head of 64 KiB", format!("{get}{}\r\n\r\n", field(65_000)), 0),
        unread("chunk extensions", format!("{chunked}{extended}"), 0),
        unread("tiny chunks", format!("{chunked}{tiny}"), 0),
        unread("tiny chunks, byte by byte", format!("{chunked}{}", &tiny[..1_500]), 1),
        unread("pipelined requests", format!("{whole}{}", whole.repeat(1_500)), 0),
        unread(
            "pipelined requests, byte by byte",
            format!("{whole}{}", whole.repeat(30)),
            1,
        ),
        unread(
            "early bytes of an upgrade",
            format!(
                "{get}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n{}",
                "e".repeat(60_000)
            ),
            0,
        ),
        answered(
            "a site's long line",
            &whole,
            0,
            format!("HTTP/1.1 200 OK\r\n{}", field(64_000)),
        ),
        answered(
            "a site's head of 64 KiB",
            &whole,
            0,
            format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", field(65_000)),
        ),
        answered("a site's tiny chunks", &whole, 0, format!("{ok}{tiny}")),
        answered(
            "a site's tiny chunks, byte by byte",
            &whole,
            1,
            format!("{ok}{}", &tiny[..1_500]),
        ),
        answered("a site's chunk extensions", &whole, 0, format!("{ok}{extended}")),
        answered(
            "a site's tiny chunks for HTTP/1.0",
            "GET http://SITE/ HTTP/1.0\r\n\r\n",
            0,
            format!("{ok}{tiny}"),
        ),
        answered(
            "interim answers",
            &whole,
            0,
            "HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n".repeat(60),
        ),
    ]
}

/// Writes what the socket takes; returns how much.
fn write(socket: &TcpStream, bytes: &[u8], step: usize) -> u64 {
    let mut written = 0;
    socket.set_nonblocking(true).unwrap();
    for piece in bytes.chunks(if step == 0 { bytes.len().max(1) } else { step }) {
        match (&*socket).write(piece) {
            Ok(n) => written += n as u64,
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ) =>
            {
                break;
            }
            Err(e) => panic!("{e}"),
        }
    }
    socket.set_nonblocking(false).unwrap();
    written
}

/// One connection, with the site's end if it has one, and how much was sent.
fn start(attack: &Attack, proxy: SocketAddr) -> (Vec<TcpStream>, u64) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    SockRef::from(&listener).set_recv_buffer_size(SOCKET_BYTES).unwrap();
    let browser = dial(proxy).unwrap();
    SockRef::from(&browser).set_recv_buffer_size(SOCKET_BYTES).unwrap();
    browser.set_nodelay(true).unwrap();
    let request = attack
        .request
        .replace("SITE", &listener.local_addr().unwrap().to_string());
    let mut sent = write(&browser, request.as_bytes(), attack.step);
    let Some(answer) = &attack.answer else {
        return (vec![browser], sent);
    };
    let mut site = listener.accept().unwrap().0;
    site.set_nodelay(true).unwrap();
    if !answer.is_empty() {
        assert_ne!(site.read(&mut [0; 1_024]).unwrap(), 0);
        sent += write(&site, answer, attack.step);
    }
    (vec![browser, site], sent)
}

fn what_is_sent_is_not_multiplied(driver: Driver) {
    raise_own_limit();
    let origin = Origin::start();
    for attack in attacks() {
        // In programs of its own: what an allocator keeps of one attack would hide the next.
        let cloud = Cloud::start(driver);
        let tunnel = cloud.start_tunnel();
        tunnel.serves(&origin);
        let programs = [("sc", tunnel.process.id()), ("endpoint", cloud.endpoint())];
        let memory = || programs.map(|(_, id)| memory_bytes(id));
        let before = memory();
        let mut most = before;
        let mut look = || {
            for (most, now) in most.iter_mut().zip(memory()) {
                *most = now.max(*most);
            }
        };
        let mut sent = 0;
        let mut open = Vec::new();
        for n in 0..CONNECTIONS {
            let (sockets, bytes) = start(&attack, tunnel.proxy);
            open.extend(sockets);
            sent += bytes;
            if n % 20 == 0 {
                look();
            }
        }
        let since = Instant::now();
        while since.elapsed() < LOOK {
            look();
            fault_lasts(LOOK / 10);
        }
        let allowed = TIMES * sent + CONNECTIONS as u64 * STREAM_BYTES;
        for ((name, _), (before, most)) in programs.iter().zip(before.into_iter().zip(most)) {
            let grown = most.saturating_sub(before);
            println!(
                "{}: {name} grew by {} of {} KiB",
                attack.what,
                grown >> 10,
                allowed >> 10
            );
            assert!(grown <= allowed, "{}: {name}, {sent} bytes were sent", attack.what);
        }
        tunnel.serves(&origin);
    }
}
