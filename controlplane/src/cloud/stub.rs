//! Stand-in for `dataplane::endpoint` with its signatures: a link is up as soon as it is handed over, and a self-test
//! is answered at once.

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use crossbeam::channel::{Receiver, Sender, unbounded};
use dataplane::settings::Settings;
use dataplane::tls::{Fingerprint, Identity};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

pub struct EndpointConfig {
    pub shards: usize,
    pub identity: Arc<Identity>,
    pub settings: Arc<Settings>,
    pub driver: Driver,
    pub max_streams: usize,
    pub browsers: Vec<OwnedFd>,
}

#[derive(Clone, Copy, Debug)]
pub enum Driver {
    Auto,
    IoUring,
    Epoll,
}

pub struct Member {
    pub id: [u8; 16],
    pub fingerprint: Fingerprint,
    pub index: usize,
}

pub enum Event {
    LinkUp {
        member: [u8; 16],
        link: u16,
    },
    LinkDown {
        member: [u8; 16],
        link: u16,
        reason: String,
    },
    DialFailed {
        link: u16,
        wrong_key: bool,
        text: String,
    },
    Settings {
        member: [u8; 16],
        link: u16,
        version: u32,
        json: Vec<u8>,
    },
    SettingsAck {
        version: u32,
        accepted: bool,
        text: String,
    },
    Log {
        level: Level,
        text: String,
    },
    Drained,
    Failed(String),
}

pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

#[derive(Default)]
pub struct Report {
    pub requests: u64,
    pub streams_open: u64,
}

pub struct Endpoint {
    send: Sender<Event>,
    events: Receiver<Event>,
    wake: OwnedFd,
    links: Mutex<Vec<OwnedFd>>,
}

pub fn start(config: EndpointConfig) -> Result<Endpoint, String> {
    for fd in config.browsers {
        std::thread::spawn(move || shard(fd));
    }
    let (send, events) = unbounded();
    let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
    Ok(Endpoint {
        send,
        events,
        wake: rustix::event::eventfd(0, flags).map_err(|e| e.to_string())?,
        links: Mutex::default(),
    })
}

fn shard(fd: OwnedFd) {
    loop {
        let mut poll = [rustix::event::PollFd::new(
            &fd,
            rustix::event::PollFlags::IN,
        )];
        let _ = rustix::event::poll(&mut poll, None);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut kind = [0u8; 1];
        let got = recvmsg(
            &fd,
            &mut [IoSliceMut::new(&mut kind)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        if got.is_ok_and(|m| m.bytes == 0) {
            return;
        }
        for part in ancillary.drain() {
            let RecvAncillaryMessage::ScmRights(fds) = part else {
                continue;
            };
            for fd in fds {
                answer(kind[0], TcpStream::from(fd));
            }
        }
    }
}

fn answer(kind: u8, mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false);
    let mut request = [0; 1_024];
    let length = stream.read(&mut request).unwrap_or(0);
    let text = String::from_utf8_lossy(&request[..length]).into_owned();
    let nonce = text.split(['/', ' ']).nth(4).unwrap_or_default();
    let answer = match kind {
        1 => format!("HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n{nonce}"),
        _ => "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_owned(),
    };
    let _ = stream.write_all(answer.as_bytes());
}

impl Endpoint {
    fn tell(&self, event: Event) {
        let _ = self.send.send(event);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
    pub fn attach(&self, _member: Member) {}
    pub fn link(&self, member: [u8; 16], link: u16, fd: OwnedFd, _first: Vec<u8>) {
        self.links.lock().unwrap().push(fd);
        self.tell(Event::LinkUp { member, link });
    }
    pub fn reload(&self, _settings: Arc<Settings>) {}
    pub fn refuse(&self, _version: u32, _text: &str) {}
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
    pub fn report(&self) -> Report {
        Report::default()
    }
    pub fn drain(&self) {
        self.tell(Event::Drained);
    }
    pub fn driver(&self) -> Driver {
        Driver::Epoll
    }
}
