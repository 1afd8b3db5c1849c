//! Links that say what they like: those of a hostile `sc`, a member of a pool that asks REST for its tunnel and dials as
//! the real one does, and those that a hostile endpoint has taken.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use dataplane::limits::FRAME_HEADER_BYTES;
use dataplane::mux::frame::{self, Frame, GoAwayReason, Header};
use dataplane::mux::{Hello, Kind, Open};
use dataplane::time::Time;
use dataplane::tls::{Handshake, Identity, Opener, Progress, Record, Sealer, client_config};
use serde_json::{Value, json};
use tests::cloud::{Cloud, Tunnel, fault_lasts};
use tests::http::dial;
use tests::process::PATIENCE;

use super::table::{Case, Known, State};

/// The real programs answer, or end what they will not answer, in this time: the longest that they wait for anything here
/// are the 5 s of a HELLO.
pub const ANSWER_MAX: Duration = Duration::from_secs(20);

/// What counts as a rule, in a tunnel object.
const RULES: [&str; 5] = [
    "domain_names",
    "direct_domains",
    "fast_fail_regexps",
    "no_ssl_bump_domains",
    "no_proxy_caching",
];

pub struct Member {
    pub id: String,
    identity: Identity,
    tls: Arc<rustls::ClientConfig>,
    cloud: SocketAddr,
    server_name: String,
    /// Of the last dial.
    epoch: u64,
}

impl Member {
    /// Joins the pool of `honest`, whose rules it has to share.
    pub fn join(cloud: &Cloud, honest: &Tunnel) -> Self {
        let identity = Identity::generate().expect("a key");
        let theirs = cloud.tunnel(&honest.id);
        let mut request = json!({
            "tunnel_identifier": theirs["tunnel_identifier"],
            "tunnel_pool": true,
            "culvert": {"fingerprint": identity.fingerprint().to_string()},
        });
        for rule in RULES {
            request[rule] = theirs[rule].clone();
        }
        let path = format!("/{}/tunnels", cloud.user);
        let answer = cloud.rest_with("POST", &path, request.to_string().as_bytes());
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let id = answer.json()["id"].as_str().expect("an id").to_owned();
        let object = running(cloud, &id);
        let endpoint = &object["culvert"];
        let text = |field: &str| endpoint[field].as_str().unwrap_or_else(|| panic!("{field}: {object}"));
        let pin = text("fingerprint").parse().expect("a fingerprint");
        Self {
            tls: client_config(&identity, pin).expect("TLS of links"),
            identity,
            cloud: text("address").parse().expect("an address"),
            server_name: text("server_name").to_owned(),
            id,
            epoch: 0,
        }
    }

    /// Its link, after TLS: nothing was said.
    pub fn dial(&mut self) -> Link {
        let name = self.server_name.clone();
        self.dial_as(&name)
    }

    /// The same under another tunnel's name.
    pub fn dial_as(&mut self, server_name: &str) -> Link {
        self.epoch += 1;
        // Never twice the same, so that no session goes on by accident.
        let hello = hello(self.identity.member(), u128::from(self.epoch).to_be_bytes(), self.epoch);
        let socket = dial(self.cloud).expect("the front listens");
        let name = format!("{}.{server_name}", hello.link);
        let handshake = Handshake::client(self.tls.clone(), &name).expect("a name");
        Link::over(socket, handshake, hello).expect("TLS with the endpoint")
    }

    /// A fresh session: both HELLOs are exchanged, nothing is acknowledged, so that no browser's request comes here.
    pub fn up(&mut self) -> Link {
        let mut link = self.dial();
        link.say(&[link.greeting()]);
        link.until("HELLO", |f| matches!(f, Frame::Hello(_)));
        link.until("the rules' version", |f| matches!(f, Frame::SettingsAck { .. }));
        link
    }

    /// The session of `link` goes on over another connection.
    pub fn resume(&mut self, link: Link) -> Link {
        let mut next = self.dial();
        next.hello.session = link.hello.fresh;
        next.received = link.received;
        next.hello.received = link.received;
        drop(link);
        next.say(&[next.greeting()]);
        let answer = next.until("HELLO", |f| matches!(f, Frame::Hello(_)));
        let Frame::Hello(answer) = answer else { unreachable!() };
        assert_eq!(answer.session, next.hello.session, "the session goes on");
        next
    }
}

/// Polls until a new tunnel has an endpoint.
fn running(cloud: &Cloud, id: &str) -> Value {
    let since = Instant::now();
    loop {
        let object = cloud.tunnel(id);
        if object["status"] == "running" && object["culvert"]["server_name"].is_string() {
            return object;
        }
        assert!(since.elapsed() < PATIENCE, "{object}");
        // The front limits the connections of one address.
        fault_lasts(Duration::from_millis(20));
    }
}

/// Reads once; false at the end, however it came.
fn read(socket: &mut TcpStream, input: &mut BytesMut) -> bool {
    let mut piece = [0; 64 * 1024];
    match socket.read(&mut piece) {
        Ok(n) => {
            input.extend_from_slice(&piece[..n]);
            n > 0
        }
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!("neither an answer nor an end within {ANSWER_MAX:?}")
        }
        Err(_) => false,
    }
}

fn hello(member: [u8; 16], fresh: [u8; 16], epoch: u64) -> Hello {
    Hello {
        version_min: frame::VERSION,
        version_max: frame::VERSION,
        link: 0,
        links: 1,
        member,
        session: [0; 16],
        fresh,
        epoch,
        received: 0,
        first_credit: 16_384,
    }
}

/// One connection of a link.
pub struct Link {
    socket: TcpStream,
    sealer: Sealer,
    opener: Opener,
    input: BytesMut,
    plain: BytesMut,
    pub hello: Hello,
    /// Counted bytes of the session.
    pub received: u64,
    pings: u64,
    /// Of what it waits for.
    deadline: Instant,
}

impl Link {
    /// None if the other side ends the handshake.
    fn over(mut socket: TcpStream, mut handshake: Handshake, hello: Hello) -> Option<Self> {
        socket.set_read_timeout(Some(ANSWER_MAX)).expect("a socket");
        let mut input = BytesMut::new();
        loop {
            let progress = handshake.handle(&mut input).expect("TLS of a link");
            while let Some(output) = handshake.output() {
                socket.write_all(&output).ok()?;
            }
            if progress == Progress::Done {
                break;
            }
            if !read(&mut socket, &mut input) {
                return None;
            }
        }
        let (sealer, opener, _) = handshake.into_records().expect("TLS is up");
        Some(Self {
            socket,
            sealer,
            opener,
            input,
            plain: BytesMut::new(),
            hello,
            received: 0,
            pings: 0,
            deadline: Instant::now(),
        })
    }

    /// What `sc` has dialled, and its HELLO, which is not answered; none if it has given the dial up.
    pub fn accept(socket: TcpStream, tls: Arc<rustls::ServerConfig>) -> Option<(Self, Hello)> {
        socket.set_nodelay(true).expect("a socket");
        let handshake = Handshake::server(tls).expect("TLS of links");
        let mut link = Self::over(socket, handshake, hello([0; 16], [0; 16], 0))?;
        let Ok(Frame::Hello(theirs)) = link.next() else {
            return None;
        };
        link.hello = Hello {
            session: theirs.fresh,
            fresh: [0; 16],
            received: 0,
            ..theirs.clone()
        };
        Some((link, theirs))
    }

    pub fn greeting(&self) -> Bytes {
        bytes_of(&Frame::Hello(self.hello.clone()))
    }

    /// It fails if the other side has ended the link before: what is heard next tells.
    pub fn say(&mut self, frames: &[Bytes]) {
        /// All but floods go in one write.
        const FRAMES_PER_WRITE: usize = 1_024;
        for frames in frames.chunks(FRAMES_PER_WRITE) {
            let mut records = Vec::new();
            self.sealer.seal(frames, &mut records).expect("frames fit records");
            if self.socket.write_all(&records).is_err() {
                break;
            }
        }
    }

    pub fn say_frames(&mut self, frames: impl IntoIterator<Item = Frame>) {
        let frames: Vec<Bytes> = frames.into_iter().map(|frame| bytes_of(&frame)).collect();
        self.say(&frames);
    }

    pub fn say_frame(&mut self, frame: &Frame) {
        self.say(&[bytes_of(frame)]);
    }

    /// Says nothing more, as a peer that has died.
    pub fn hang_up(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// The next frame, or whether the end was announced.
    fn hear(&mut self) -> Result<Frame, bool> {
        loop {
            if let Some(Ok(header)) = Header::decode(&self.plain)
                && self.plain.len() >= FRAME_HEADER_BYTES + header.length
            {
                self.plain.advance(FRAME_HEADER_BYTES);
                let payload = self.plain.split_to(header.length).freeze();
                if header.counted() {
                    self.received += (FRAME_HEADER_BYTES + header.length) as u64;
                }
                return Ok(frame::decode(header, payload).expect("the other side keeps the protocol"));
            }
            match self.opener.open(Time::now(), &mut self.input) {
                Ok(Some(Record::Data(bytes))) => self.plain.extend_from_slice(&bytes),
                Ok(Some(Record::Closed)) => return Err(true),
                Ok(Some(Record::KeyUpdate { .. })) => {}
                Ok(None) if read(&mut self.socket, &mut self.input) => {
                    // PINGs of the other side are no answer.
                    assert!(Instant::now() < self.deadline, "no answer within {ANSWER_MAX:?}");
                }
                Ok(None) | Err(_) => return Err(false),
            }
        }
    }

    /// The next frame, or whether the end was announced. PINGs are answered, and come back too: they show that time passes.
    pub fn next(&mut self) -> Result<Frame, bool> {
        self.deadline = Instant::now() + ANSWER_MAX;
        let frame = self.hear()?;
        if let Frame::Ping(token) = frame {
            self.say_frame(&Frame::Pong(token));
        }
        Ok(frame)
    }

    /// Hears until a frame fits; PINGs of the other side are answered meanwhile.
    pub fn until(&mut self, what: &str, fits: impl Fn(&Frame) -> bool) -> Frame {
        let mut heard = Vec::new();
        self.deadline = Instant::now() + ANSWER_MAX;
        loop {
            match self.hear() {
                Ok(frame) if fits(&frame) => return frame,
                Ok(Frame::Ping(token)) => self.say_frame(&Frame::Pong(token)),
                Ok(frame) => heard.push(frame),
                Err(announced) => panic!("ended ({announced}) before {what}; heard {heard:?}"),
            }
        }
    }

    /// Hears until the endpoint opens a stream of this kind; its self-tests come as they like.
    pub fn until_open(&mut self, kind: Kind) -> (u64, Open) {
        let fits = |f: &Frame| matches!(f, Frame::Open(_, open) if open.kind == kind);
        match self.until("a browser's request", fits) {
            Frame::Open(stream, open) => (stream, open),
            _ => unreachable!(),
        }
    }

    /// Hears until the end: what was said, and whether the end was announced.
    pub fn rest(&mut self) -> (Vec<Frame>, bool) {
        let mut heard = Vec::new();
        self.deadline = Instant::now() + ANSWER_MAX;
        loop {
            match self.hear() {
                Ok(frame) => heard.push(frame),
                Err(announced) => return (heard, announced),
            }
        }
    }

    /// Asks for a sign of life: that all said before has been taken, or the end.
    pub fn ping(&mut self) -> Result<Vec<Frame>, bool> {
        self.pings += 1;
        let token = self.pings.to_be_bytes();
        self.say_frame(&Frame::Ping(token));
        let mut heard = Vec::new();
        self.deadline = Instant::now() + ANSWER_MAX;
        loop {
            match self.hear()? {
                Frame::Pong(pong) if pong == token => return Ok(heard),
                Frame::Ping(token) => self.say_frame(&Frame::Pong(token)),
                frame => heard.push(frame),
            }
        }
    }

    /// What an honest peer would name on this stream.
    pub fn known(&self, stream: u64, credit: u64) -> Known {
        Known {
            stream,
            credit,
            received: self.received,
            hello: self.hello.clone(),
        }
    }

    /// Says what a case says: whole, or cut within a header or within the middle, into records of their own.
    pub fn say_case(&mut self, case: &Case, known: &Known, cut: usize) {
        let mut frames = (case.frames)(known);
        if case.state == State::Greeting {
            let hello = self.greeting();
            return self.say(&[[hello].into_iter().chain(frames).flatten().collect()]);
        }
        let first = frames[0].clone();
        let at = [0, 7, first.len() / 2][cut % 3];
        if at > 0 {
            self.say(&[first.slice(..at)]);
            frames[0] = first.slice(at..);
        }
        self.say(&frames);
    }

    /// The other side's last words are GOAWAY of this reason, and it announces the end.
    pub fn ends_as(&mut self, reason: GoAwayReason, what: &str) {
        let (heard, announced) = self.rest();
        let farewell = |f: &Frame| matches!(f, Frame::GoAway { reason: said, .. } if *said == reason);
        assert!(
            heard.last().is_some_and(farewell) && announced,
            "{what}: {announced}, {heard:?}"
        );
    }

    /// All said before has been taken without a farewell, or the link has ended.
    pub fn goes_on(&mut self, what: &str) -> Result<(), bool> {
        let heard = self.ping()?;
        assert!(!heard.iter().any(is_farewell), "{what}: {heard:?}");
        Ok(())
    }

    /// Says half of a frame, and dies: that ends a connection, and is nobody's fault.
    pub fn dies_within(&mut self, frame: &Bytes, what: &str) {
        self.say(&[frame.slice(..frame.len() / 2)]);
        self.hang_up();
        let (heard, announced) = self.rest();
        assert!(
            !heard.iter().any(is_farewell) && !announced,
            "half of {what}: {heard:?}"
        );
    }

    /// Opens nothing more.
    pub fn drains(&mut self) {
        self.say_frame(&Frame::GoAway {
            last: u64::MAX,
            reason: GoAwayReason::Drain,
            text: Bytes::new(),
        });
    }

    /// Acknowledges all: from now on browsers' requests come here.
    pub fn goes_live(&mut self) {
        self.say_frame(&Frame::Ack(self.received));
        self.ping().expect("a live link");
    }
}

fn is_farewell(frame: &Frame) -> bool {
    matches!(frame, Frame::GoAway { .. })
}

fn bytes_of(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    frame::encode(frame, &mut out);
    out.freeze()
}
