//! A relay between `sc` and the cloud that cuts: it passes bytes, holds them back (a black hole), refuses connections,
//! and ends those that exist by RST or FIN. It tells the links of a tunnel apart by the server name in the ClientHello
//! (`LINK.TUNNEL.tunnel.culvert`), which is in the clear; everything else is REST.
//!
//! Each change is done when the call returns: no connection passes another byte under the old rule.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use socket2::{Domain, SockRef, Socket, Type};

use crate::http::PATIENCE;

const BUFFER_BYTES: usize = 64 * 1024;
const HELLO_BYTES_MAX: usize = 17 * 1024;
const LINK_SUFFIX: &str = ".tunnel.culvert";

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Rest,
    Link(u16),
}

/// Which connections a rule or a cut is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    All,
    Rest,
    Links,
    Link(u16),
}

impl Which {
    fn covers(self, kind: Kind) -> bool {
        match (self, kind) {
            (Self::All, _) | (Self::Rest, Kind::Rest) | (Self::Links, Kind::Link(_)) => true,
            (Self::Link(n), Kind::Link(m)) => n == m,
            _ => false,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    #[default]
    Pass,
    /// Nothing moves, neither end is told; connections stay, new ones are taken and left without a word.
    BlackHole,
    /// New connections are reset as soon as it is known what they carry; `Which::All` refuses them outright.
    Refuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Reset,
    Fin,
}

struct Entry {
    kind: Option<Kind>,
    cut: Option<Cut>,
    /// The last generation of rules that its thread acts by.
    seen: u64,
    /// Bytes both ways.
    carried: u64,
    wake: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    target: Option<SocketAddr>,
    /// Where links go instead, if anywhere.
    links_target: Option<SocketAddr>,
    /// Later rules go before earlier ones.
    rules: Vec<(Which, Rule)>,
    generation: u64,
    next: u64,
    connections: BTreeMap<u64, Entry>,
    stats: Stats,
    stopped: bool,
}

impl State {
    fn rule(&self, kind: Option<Kind>) -> Rule {
        let covers = |which: &Which| kind.map_or(*which == Which::All, |kind| which.covers(kind));
        self.rules
            .iter()
            .rev()
            .find(|(which, _)| covers(which))
            .map_or(Rule::Pass, |(_, rule)| *rule)
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub accepted: u64,
    /// Connections whose ClientHello named a link.
    pub links: u64,
    pub links_open: usize,
    pub to_cloud: u64,
    pub to_client: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("threads of the relay do not panic")
    }

    fn wait(&self, what: &str, reached: impl Fn(&State) -> bool) -> Stats {
        let guard = self.lock();
        let (state, late) = self
            .changed
            .wait_timeout_while(guard, PATIENCE, |state| !reached(state))
            .expect("as above");
        assert!(
            !late.timed_out(),
            "the relay waited in vain for {what}: {:?}",
            state.stats
        );
        state.stats
    }
}

pub struct Relay {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    /// Bound and never listening: keeps the port while connections are refused.
    _reserve: Socket,
    listener: Mutex<Option<Listener>>,
}

struct Listener {
    wake: Arc<OwnedFd>,
    thread: thread::JoinHandle<()>,
}

impl Relay {
    /// On a free port of loopback; connections wait until `set_target` says where they go.
    pub fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST)
    }

    pub fn start_at(address: Ipv4Addr) -> Self {
        let reserve = bound(SocketAddr::from((address, 0))).expect("a free port");
        let address = reserve.local_addr().expect("bound").as_socket().expect("an IP socket");
        let relay = Self {
            address,
            shared: Arc::default(),
            _reserve: reserve,
            listener: Mutex::default(),
        };
        relay.listen();
        relay
    }

    pub fn set_target(&self, target: SocketAddr) {
        self.shared.lock().target = Some(target);
        self.shared.changed.notify_all();
    }

    /// Links lead elsewhere from now on: to whoever poses as the endpoint.
    pub fn divert_links(&self, target: SocketAddr) {
        self.shared.lock().links_target = Some(target);
    }

    fn listen(&self) {
        let mut listener = self.listener.lock().expect("no panic while listening starts");
        if listener.is_some() {
            return;
        }
        let socket = bound(self.address)
            .and_then(|socket| socket.listen(1_024).map(|()| socket))
            .expect("own port");
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd"));
        let (shared, woken) = (self.shared.clone(), wake.clone());
        let thread = thread::spawn(move || accept_all(socket.into(), &shared, &woken));
        *listener = Some(Listener { wake, thread });
    }

    fn stop_listening(&self) {
        let listener = self.listener.lock().expect("no panic while listening starts").take();
        if let Some(Listener { wake, thread }) = listener {
            rustix::io::write(&wake, &1u64.to_ne_bytes()).expect("an eventfd takes a wake-up");
            thread.join().expect("threads of the relay do not panic");
        }
    }

    /// From now on `rule` holds for these connections, those that exist and those to come.
    pub fn set(&self, which: Which, rule: Rule) {
        {
            let mut state = self.shared.lock();
            state.rules.retain(|(w, _)| *w != which && which != Which::All);
            state.rules.push((which, rule));
        }
        match (which, rule) {
            (Which::All, Rule::Refuse) => self.stop_listening(),
            _ => self.listen(),
        }
        self.settle(|_| {});
    }

    /// Ends the connections that exist; their number is returned.
    pub fn cut(&self, which: Which, how: Cut) -> usize {
        let mut ids = Vec::new();
        self.settle(|state| {
            for (id, entry) in &mut state.connections {
                if entry.kind.map_or(which == Which::All, |kind| which.covers(kind)) {
                    entry.cut = Some(how);
                    ids.push(*id);
                }
            }
        });
        self.shared.wait("cut connections to end", |state| {
            ids.iter().all(|id| !state.connections.contains_key(id))
        });
        ids.len()
    }

    /// Makes a change, and returns when every connection acts by it.
    fn settle(&self, change: impl FnOnce(&mut State)) {
        let generation = {
            let mut state = self.shared.lock();
            change(&mut state);
            state.generation += 1;
            for entry in state.connections.values() {
                rustix::io::write(&entry.wake, &1u64.to_ne_bytes()).expect("an eventfd takes a wake-up");
            }
            state.generation
        };
        self.shared.changed.notify_all();
        self.shared.wait("the change", |state| {
            state.connections.values().all(|entry| entry.seen >= generation)
        });
    }

    pub fn stats(&self) -> Stats {
        self.shared.lock().stats
    }

    /// Bytes that the connections which exist have carried, both ways.
    pub fn carried(&self, which: Which) -> u64 {
        let state = self.shared.lock();
        let covered = |entry: &&Entry| entry.kind.is_some_and(|kind| which.covers(kind));
        state
            .connections
            .values()
            .filter(covered)
            .map(|entry| entry.carried)
            .sum()
    }

    /// Waits until the statistics fit.
    pub fn wait(&self, what: &str, reached: impl Fn(&Stats) -> bool) -> Stats {
        self.shared.wait(what, |state| reached(&state.stats))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.stop_listening();
        self.cut(Which::All, Cut::Reset);
    }
}

fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn accept_all(listener: TcpListener, shared: &Arc<Shared>, wake: &OwnedFd) {
    listener.set_nonblocking(true).expect("a listener");
    loop {
        let mut fds = [PollFd::new(wake, PollFlags::IN), PollFd::new(&listener, PollFlags::IN)];
        retry_poll(&mut fds);
        if !fds[0].revents().is_empty() {
            return;
        }
        let Ok((client, _)) = listener.accept() else { continue };
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd"));
        let id = {
            let mut state = shared.lock();
            let (id, seen) = (state.next, state.generation);
            state.next += 1;
            state.stats.accepted += 1;
            state.connections.insert(
                id,
                Entry {
                    kind: None,
                    cut: None,
                    seen,
                    carried: 0,
                    wake: wake.clone(),
                },
            );
            id
        };
        let shared = shared.clone();
        thread::spawn(move || {
            let ends = carry(&client, &shared, id, &wake);
            // An error on one side reaches the other as a reset, as it would on the way.
            end(&client, ends.unwrap_or(Cut::Reset));
            drop(client);
            let mut state = shared.lock();
            if let Some(Entry {
                kind: Some(Kind::Link(_)),
                ..
            }) = state.connections.remove(&id)
            {
                state.stats.links_open -= 1;
            }
            drop(state);
            shared.changed.notify_all();
        });
    }
}

fn retry_poll(fds: &mut [PollFd<'_>]) {
    while let Err(rustix::io::Errno::INTR) = poll(fds, None) {}
}

fn end(socket: &TcpStream, how: Cut) {
    if how == Cut::Reset {
        // Closing with a linger of zero sends RST.
        let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
    }
}

/// One way of a connection: at most one buffer is under way.
struct Way {
    buffer: Vec<u8>,
    sent: usize,
    ended: bool,
    shut: bool,
}

impl Way {
    fn new(first: Vec<u8>) -> Self {
        Self {
            buffer: first,
            sent: 0,
            ended: false,
            shut: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.sent == self.buffer.len()
    }

    fn done(&self) -> bool {
        self.ended && self.is_empty()
    }

    /// Reads when there is nothing to send, sends what there is; the number of bytes sent is returned.
    fn step(&mut self, from: &TcpStream, to: &TcpStream) -> io::Result<usize> {
        if self.is_empty() && !self.ended {
            self.buffer.resize(BUFFER_BYTES, 0);
            self.sent = 0;
            let read = non_blocking((&mut { from }).read(&mut self.buffer));
            self.buffer
                .truncate(*read.as_ref().unwrap_or(&None).as_ref().unwrap_or(&0));
            self.ended = read? == Some(0);
        }
        let mut sent = 0;
        if !self.is_empty() {
            sent = non_blocking((&mut { to }).write(&self.buffer[self.sent..]))?.unwrap_or(0);
            self.sent += sent;
        }
        if self.done() && !self.shut {
            self.shut = true;
            to.shutdown(std::net::Shutdown::Write)?;
        }
        Ok(sent)
    }
}

/// `None` where the socket would block.
fn non_blocking(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

/// What the thread of a connection has to do now.
enum Order {
    Carry(Rule),
    End(Cut),
}

fn order(shared: &Shared, id: u64) -> Order {
    let mut state = shared.lock();
    let generation = state.generation;
    let entry = state.connections.get_mut(&id).expect("removed by its own thread only");
    entry.seen = generation;
    let (kind, cut) = (entry.kind, entry.cut);
    let rule = state.rule(kind);
    shared.changed.notify_all();
    cut.map_or(Order::Carry(rule), Order::End)
}

/// Carries a connection to its end, and says how it ended.
fn carry(client: &TcpStream, shared: &Shared, id: u64, wake: &OwnedFd) -> io::Result<Cut> {
    client.set_nonblocking(true)?;
    client.set_nodelay(true)?;
    let mut hello = Vec::new();
    let kind = loop {
        match order(shared, id) {
            Order::End(how) => return Ok(how),
            Order::Carry(rule) => wait_ready(wake, (rule != Rule::BlackHole).then_some((client, PollFlags::IN)), None),
        }
        let mut piece = [0; 4_096];
        match non_blocking((&mut { client }).read(&mut piece))? {
            Some(0) => return Ok(Cut::Fin),
            Some(n) => hello.extend_from_slice(&piece[..n]),
            None => {}
        }
        if let Some(kind) = classify(&hello) {
            break kind;
        }
    };
    let target = {
        let mut state = shared.lock();
        state
            .connections
            .get_mut(&id)
            .expect("removed by its own thread only")
            .kind = Some(kind);
        if let Kind::Link(_) = kind {
            state.stats.links += 1;
            state.stats.links_open += 1;
        }
        if state.rule(Some(kind)) == Rule::Refuse {
            return Ok(Cut::Reset);
        }
        match kind {
            Kind::Link(_) => state.links_target.or(state.target),
            Kind::Rest => state.target,
        }
    };
    let Some(target) = target else { return Ok(Cut::Reset) };
    let cloud = TcpStream::connect(target)?;
    cloud.set_nonblocking(true)?;
    cloud.set_nodelay(true)?;
    let ended = pump(client, &cloud, hello, shared, id, wake);
    end(&cloud, *ended.as_ref().unwrap_or(&Cut::Reset));
    ended
}

fn pump(
    client: &TcpStream,
    cloud: &TcpStream,
    hello: Vec<u8>,
    shared: &Shared,
    id: u64,
    wake: &OwnedFd,
) -> io::Result<Cut> {
    let (mut up, mut down) = (Way::new(hello), Way::new(Vec::new()));
    loop {
        match order(shared, id) {
            Order::End(how) => return Ok(how),
            Order::Carry(Rule::BlackHole) => {
                wait_ready(wake, None, None);
                continue;
            }
            Order::Carry(_) => {}
        }
        let (to_cloud, to_client) = (up.step(client, cloud)?, down.step(cloud, client)?);
        if up.done() && down.done() {
            return Ok(Cut::Fin);
        }
        if to_cloud + to_client > 0 {
            let mut state = shared.lock();
            state.stats.to_cloud += to_cloud as u64;
            state.stats.to_client += to_client as u64;
            let entry = state.connections.get_mut(&id).expect("removed by its own thread only");
            entry.carried += (to_cloud + to_client) as u64;
            drop(state);
            shared.changed.notify_all();
        }
        wait_ready(wake, interest(client, &up, &down), interest(cloud, &down, &up));
    }
}

/// What to wait for on a socket that `from` reads and `to` writes. A side that is done is not asked: it would answer
/// at once, for ever.
fn interest<'a>(socket: &'a TcpStream, from: &Way, to: &Way) -> Option<(&'a TcpStream, PollFlags)> {
    let mut flags = PollFlags::empty();
    if from.is_empty() && !from.ended {
        flags |= PollFlags::IN;
    }
    if !to.is_empty() {
        flags |= PollFlags::OUT;
    }
    (!flags.is_empty()).then_some((socket, flags))
}

type Interest<'a> = Option<(&'a TcpStream, PollFlags)>;

fn wait_ready(wake: &OwnedFd, one: Interest<'_>, other: Interest<'_>) {
    let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
    fds.extend(
        [one, other]
            .into_iter()
            .flatten()
            .map(|(socket, flags)| PollFd::new(socket, flags)),
    );
    retry_poll(&mut fds);
    if !fds[0].revents().is_empty() {
        let _ = rustix::io::read(wake, &mut [0; 8]);
    }
}

/// What a connection carries, once enough of it was read.
fn classify(hello: &[u8]) -> Option<Kind> {
    match server_name(hello) {
        Ok(name) => {
            let link = name.and_then(|name| name.strip_suffix(LINK_SUFFIX)?.split('.').next()?.parse().ok());
            Some(link.map_or(Kind::Rest, Kind::Link))
        }
        Err(()) if hello.len() > HELLO_BYTES_MAX => Some(Kind::Rest),
        Err(()) => None,
    }
}

/// The server name of a ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3), `Err` while bytes are missing.
fn server_name(bytes: &[u8]) -> Result<Option<&str>, ()> {
    if *bytes.first().ok_or(())? != 22 {
        return Ok(None);
    }
    let record = usize::from(u16::from_be_bytes([*bytes.get(3).ok_or(())?, *bytes.get(4).ok_or(())?]));
    let body = bytes.get(5..5 + record).ok_or(())?;
    Ok(find_name(body))
}

fn find_name(mut hello: &[u8]) -> Option<&str> {
    // Handshake header, version and random; then the lists before the extensions.
    take(&mut hello, 4 + 2 + 32)?;
    for width in [1, 2, 1] {
        let length = number(&mut hello, width)?;
        take(&mut hello, length)?;
    }
    number(&mut hello, 2)?;
    loop {
        let kind = number(&mut hello, 2)?;
        let length = number(&mut hello, 2)?;
        let mut extension = take(&mut hello, length)?;
        if kind == 0 {
            take(&mut extension, 3)?;
            let length = number(&mut extension, 2)?;
            return std::str::from_utf8(take(&mut extension, length)?).ok();
        }
    }
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(taken)
}

fn number(bytes: &mut &[u8], width: usize) -> Option<usize> {
    Some(take(bytes, width)?.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate;
    use crate::origin::Origin;
    use crate::{http, http::Client, tls};

    fn relay_to(target: SocketAddr) -> Relay {
        let relay = Relay::start();
        relay.set_target(target);
        relay
    }

    #[test]
    fn bytes_pass_and_ends_pass() {
        let origin = Origin::start();
        let relay = relay_to(origin.http);
        Client::dial(relay.address)
            .unwrap()
            .download("", 1, 3_000_001, "&close")
            .unwrap();
        Client::dial(relay.address)
            .unwrap()
            .upload("", 2, 3_000_001, true)
            .unwrap();
        relay.wait("both connections to end", |stats| stats.accepted == 2);
        assert!(relay.stats().to_cloud > 3_000_000 && relay.stats().to_client > 3_000_000);
    }

    #[test]
    fn a_black_hole_holds_bytes_and_loses_none() {
        let origin = Origin::start();
        let relay = relay_to(origin.http);
        let mut client = Client::dial(relay.address).unwrap();
        client.download("", 1, 10, "").unwrap();
        relay.set(Which::All, Rule::BlackHole);
        client.send("GET", "/bytes?seed=1&length=10", &[], &[]).unwrap();
        let mut other = Client::dial(relay.address).unwrap();
        other.send("GET", "/bytes?seed=1&length=10", &[], &[]).unwrap();
        let before = relay.stats().to_cloud;
        relay.wait("the new connection", |stats| stats.accepted == 2);
        assert_eq!((relay.stats().to_cloud, origin.counters().requests), (before, 1));
        relay.set(Which::All, Rule::Pass);
        assert_eq!(client.read_answer("GET").unwrap().body, crate::body::bytes(1, 10));
        assert_eq!(other.read_answer("GET").unwrap().body, crate::body::bytes(1, 10));
    }

    #[test]
    fn cuts_are_seen_as_what_they_are() {
        let origin = Origin::start();
        let relay = relay_to(origin.http);
        for (how, seen) in [
            (Cut::Reset, ErrorKind::ConnectionReset),
            (Cut::Fin, ErrorKind::UnexpectedEof),
        ] {
            let mut client = Client::dial(relay.address).unwrap();
            client.send("GET", "/bytes?seed=1&length=1000&held", &[], &[]).unwrap();
            client.read_head().unwrap();
            assert_eq!(relay.cut(Which::All, how), 1);
            assert_eq!(client.read_answer("GET").unwrap_err().kind(), seen);
        }
    }

    #[test]
    fn refused_ports_come_back() {
        let origin = Origin::start();
        let relay = relay_to(origin.http);
        relay.set(Which::All, Rule::Refuse);
        assert_eq!(
            http::dial(relay.address).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        relay.set(Which::All, Rule::Pass);
        Client::dial(relay.address).unwrap().download("", 1, 10, "").unwrap();
    }

    #[test]
    fn links_are_told_apart_by_their_server_name() {
        let names = ["0.00ff.tunnel.culvert", "7.00ff.tunnel.culvert", "rest.example"];
        let origin = Origin::start_at(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            SocketAddr::from(([127, 0, 0, 1], 0)),
            &names,
        );
        let origin = origin.unwrap();
        let relay = relay_to(origin.https);
        let config = origin.site.client_config();
        let dial = |name| tls::client(&config, name, http::dial(relay.address).unwrap());
        let mut rest = dial(names[2]).unwrap();
        let mut zero = dial(names[0]).unwrap();
        let mut seven = dial(names[1]).unwrap();
        for client in [&mut rest, &mut zero, &mut seven] {
            client.download("", 1, 10, "").unwrap();
        }
        assert_eq!((relay.stats().links, relay.stats().links_open), (2, 2));
        relay.set(Which::Link(7), Rule::Refuse);
        assert_eq!(relay.cut(Which::Link(7), Cut::Reset), 1);
        assert!(seven.download("", 1, 10, "").is_err());
        assert!(dial(names[1]).is_err());
        rest.download("", 1, 10, "").unwrap();
        zero.download("", 1, 10, "").unwrap();
        // A client that trusts another company's root gets no further than the handshake.
        let stranger = certificate::client_config(&[]);
        assert!(tls::client(&stranger, names[2], http::dial(relay.address).unwrap()).is_err());
    }
}
