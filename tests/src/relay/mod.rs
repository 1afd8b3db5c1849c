//! A relay between `sc` and the cloud that cuts: it passes bytes, holds them back (a black hole), refuses connections,
//! and ends those that exist by RST or FIN. It tells the links of a tunnel apart by the server name in the ClientHello
//! (`LINK.TUNNEL.tunnel.culvert`), which is in the clear; everything else is REST.
//!
//! Each direction can also be impaired (delay, bandwidth, pieces down to one byte) or stalled for good, and a *strike*
//! resets, half-closes or flips a bit at one byte of a connection to come.
//!
//! Each change is done when the call returns: no connection passes another byte under the old rule.

mod hello;
mod way;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use socket2::{Domain, SockRef, Socket, Type};

use crate::http::PATIENCE;
use crate::process::raise_own_limit;
use hello::classify;
use way::{Way, non_blocking};

pub use way::Impairment;

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

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToCloud,
    ToClient,
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::ToCloud, Self::ToClient];
}

/// What happens at one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// Both ends see RST; the byte does not pass.
    Reset,
    /// The receiver sees the end of this direction before the byte, and the sender nothing.
    Fin,
    /// One bit of the byte is another, and the rest passes.
    Flip,
}

/// A blow at byte `at` of one direction, counted from the start of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    pub direction: Direction,
    pub at: u64,
    pub how: Blow,
}

struct Entry {
    kind: Option<Kind>,
    cut: Option<Cut>,
    /// By direction: nothing moves any more.
    stalled: [bool; 2],
    /// The last generation of rules that its thread acts by.
    seen: u64,
    /// Bytes by direction.
    carried: [u64; 2],
    wake: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    target: Option<SocketAddr>,
    /// Where links go instead, if anywhere.
    links_target: Option<SocketAddr>,
    /// Later rules go before earlier ones.
    rules: Vec<(Which, Rule)>,
    /// As `rules`.
    impairments: Vec<(Which, Direction, Impairment)>,
    /// Each is taken by the next connection that it is for.
    strikes: VecDeque<(Which, Strike)>,
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

    fn impairment(&self, kind: Kind, direction: Direction) -> Impairment {
        let of = |(which, d, _): &&(Which, Direction, Impairment)| *d == direction && which.covers(kind);
        let latest = self.impairments.iter().rev().find(of);
        latest.map_or(Impairment::default(), |(_, _, impairment)| *impairment)
    }

    fn take_strike(&mut self, kind: Kind) -> Option<Strike> {
        let at = self.strikes.iter().position(|(which, _)| which.covers(kind))?;
        self.strikes.remove(at).map(|(_, strike)| strike)
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
    /// Strikes that have hit.
    pub struck: u64,
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
        let stats = state.stats;
        // Whoever panics must not hold the lock that other threads need for their end.
        drop(state);
        assert!(!late.timed_out(), "the relay waited in vain for {what}: {stats:?}");
        stats
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
        // Tests of one program run side by side, each with hundreds of connections.
        raise_own_limit();
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

    /// From now on this direction of these connections is impaired, of those that exist and those to come.
    pub fn impair(&self, which: Which, direction: Direction, impairment: Impairment) {
        self.settle(|state| {
            state.impairments.retain(|(w, d, _)| (*w, *d) != (which, direction));
            state.impairments.push((which, direction, impairment));
        });
    }

    /// One direction of the connections that exist is dead for good, and neither end is told; new ones pass.
    pub fn stall(&self, which: Which, direction: Direction) -> usize {
        let mut stalled = 0;
        self.settle(|state| {
            for entry in state.connections.values_mut() {
                if entry.kind.is_some_and(|kind| which.covers(kind)) {
                    entry.stalled[direction as usize] = true;
                    stalled += 1;
                }
            }
        });
        stalled
    }

    /// Each of these strikes the next connection that `which` covers and that no earlier one strikes.
    pub fn strike(&self, which: Which, strikes: impl IntoIterator<Item = Strike>) {
        let mut state = self.shared.lock();
        state.strikes.extend(strikes.into_iter().map(|strike| (which, strike)));
    }

    /// Strikes that no connection has taken.
    pub fn strikes_left(&self) -> usize {
        self.shared.lock().strikes.len()
    }

    /// Ends the connections that exist; their number is returned.
    pub fn cut(&self, which: Which, how: Cut) -> usize {
        self.cut_after(which, how, |_| {})
    }

    /// Ends the connections that exist, and strikes the next one. In one step: one that came between both would take the
    /// strike and be ended before it is struck.
    pub fn cut_and_strike(&self, which: Which, how: Cut, strike: Strike) {
        self.cut_after(which, how, |state| state.strikes.push_back((which, strike)));
    }

    fn cut_after(&self, which: Which, how: Cut, change: impl FnOnce(&mut State)) -> usize {
        let mut ids = Vec::new();
        self.settle(|state| {
            change(state);
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
            .map(|entry| entry.carried.iter().sum::<u64>())
            .sum()
    }

    /// By direction, the fewest bytes that any of the connections which exist has carried.
    pub fn least_carried(&self, which: Which) -> [u64; 2] {
        let state = self.shared.lock();
        let covered = |entry: &&Entry| entry.kind.is_some_and(|kind| which.covers(kind));
        let least = |direction: Direction| {
            let carried = state
                .connections
                .values()
                .filter(covered)
                .map(|e| e.carried[direction as usize]);
            carried.min().unwrap_or(0)
        };
        Direction::BOTH.map(least)
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
                    stalled: [false; 2],
                    seen,
                    carried: [0; 2],
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

/// As [`retry_poll`], at most until `due`; a wake-up too early is the caller's to notice.
fn poll_until(fds: &mut [PollFd<'_>], due: Option<Instant>) {
    let Some(due) = due else { return retry_poll(fds) };
    let left = due.saturating_duration_since(Instant::now());
    let _ = poll(fds, Some(&Timespec::try_from(left).expect("a wait of seconds")));
}

fn end(socket: &TcpStream, how: Cut) {
    if how == Cut::Reset {
        // Closing with a linger of zero sends RST.
        let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
    }
}

/// What the thread of a connection has to do now.
enum Order {
    Carry(Rule, [Option<Impairment>; 2]),
    End(Cut),
}

fn order(shared: &Shared, id: u64) -> Order {
    let mut state = shared.lock();
    let generation = state.generation;
    let entry = state.connections.get_mut(&id).expect("removed by its own thread only");
    entry.seen = generation;
    let (kind, cut, stalled) = (entry.kind, entry.cut, entry.stalled);
    let rule = state.rule(kind);
    // `None`: the direction is stalled.
    let ways = Direction::BOTH.map(|direction| match kind {
        _ if stalled[direction as usize] => None,
        Some(kind) => Some(state.impairment(kind, direction)),
        None => Some(Impairment::default()),
    });
    shared.changed.notify_all();
    cut.map_or(Order::Carry(rule, ways), Order::End)
}

/// Carries a connection to its end, and says how it ended.
fn carry(client: &TcpStream, shared: &Shared, id: u64, wake: &OwnedFd) -> io::Result<Cut> {
    client.set_nonblocking(true)?;
    client.set_nodelay(true)?;
    let mut hello = Vec::new();
    let kind = loop {
        match order(shared, id) {
            Order::End(how) => return Ok(how),
            Order::Carry(rule, _) => {
                let readable = (rule != Rule::BlackHole).then_some((client, PollFlags::IN));
                wait_ready(wake, readable, None, None);
            }
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
    let (target, strike, impairment) = {
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
        let target = match kind {
            Kind::Link(_) => state.links_target.or(state.target),
            Kind::Rest => state.target,
        };
        let impairment = state.impairment(kind, Direction::ToCloud);
        (target, state.take_strike(kind), impairment)
    };
    let Some(target) = target else { return Ok(Cut::Reset) };
    let cloud = TcpStream::connect(target)?;
    cloud.set_nonblocking(true)?;
    cloud.set_nodelay(true)?;
    let of = |direction| strike.filter(|s| s.direction == direction).map(|s| (s.at, s.how));
    let mut up = Way::new(id, of(Direction::ToCloud));
    let mut down = Way::new(id, of(Direction::ToClient));
    up.take_in(hello, impairment);
    let ended = pump((client, &cloud), (&mut up, &mut down), shared, id, wake);
    end(&cloud, *ended.as_ref().unwrap_or(&Cut::Reset));
    ended
}

fn pump(
    (client, cloud): (&TcpStream, &TcpStream),
    (up, down): (&mut Way, &mut Way),
    shared: &Shared,
    id: u64,
    wake: &OwnedFd,
) -> io::Result<Cut> {
    loop {
        let [to_cloud, to_client] = match order(shared, id) {
            Order::End(how) => return Ok(how),
            Order::Carry(Rule::BlackHole, _) => [None, None],
            Order::Carry(_, ways) => ways,
        };
        let step = |way: &mut Way, from, to, impairment: Option<Impairment>| {
            impairment.map_or(Ok(0), |impairment| way.step(from, to, impairment))
        };
        let sent = (
            step(up, client, cloud, to_cloud)?,
            step(down, cloud, client, to_client)?,
        );
        let struck = u64::from(up.takes_blow()) + u64::from(down.takes_blow());
        if sent.0 + sent.1 > 0 || struck > 0 {
            let mut state = shared.lock();
            state.stats.to_cloud += sent.0 as u64;
            state.stats.to_client += sent.1 as u64;
            state.stats.struck += struck;
            let entry = state.connections.get_mut(&id).expect("removed by its own thread only");
            entry.carried[Direction::ToCloud as usize] += sent.0 as u64;
            entry.carried[Direction::ToClient as usize] += sent.1 as u64;
            drop(state);
            shared.changed.notify_all();
        }
        if up.is_reset() || down.is_reset() {
            return Ok(Cut::Reset);
        }
        if up.done() && down.done() {
            return Ok(Cut::Fin);
        }
        let now = Instant::now();
        // By what each way reads from and writes to.
        let (mut flags, mut due) = ([PollFlags::empty(); 2], None);
        for (way, impairment, from, to) in [(&*up, to_cloud, 0, 1), (&*down, to_client, 1, 0)] {
            let Some(impairment) = impairment else { continue };
            if way.reads(impairment) {
                flags[from] |= PollFlags::IN;
            }
            match way.due() {
                Some(at) if at > now => due = Some(due.map_or(at, |d: Instant| d.min(at))),
                Some(_) => flags[to] |= PollFlags::OUT,
                None => {}
            }
        }
        let [at_client, at_cloud] = flags;
        // A side that is asked for nothing is not waited for: what it would say at once it would say for ever.
        let asked = |socket, flags: PollFlags| (!flags.is_empty()).then_some((socket, flags));
        wait_ready(wake, asked(client, at_client), asked(cloud, at_cloud), due);
    }
}

type Interest<'a> = Option<(&'a TcpStream, PollFlags)>;

fn wait_ready(wake: &OwnedFd, one: Interest<'_>, other: Interest<'_>, due: Option<Instant>) {
    let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
    fds.extend(
        [one, other]
            .into_iter()
            .flatten()
            .map(|(socket, flags)| PollFd::new(socket, flags)),
    );
    poll_until(&mut fds, due);
    if !fds[0].revents().is_empty() {
        let _ = rustix::io::read(wake, &mut [0; 8]);
    }
}

#[cfg(test)]
mod tests;
