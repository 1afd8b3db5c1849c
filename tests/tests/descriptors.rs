//! The two marks of open descriptors, with the real programs under a limit: at the first a browser is told to come back
//! later, at the second nothing is accepted for a moment; both pass by themselves.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::epoll as poller;
use socket2::{Domain, Socket, Type};
use tests::cloud::{Cloud, CloudOptions, Driver, Tunnel, fault_lasts};
use tests::http::{Answer, Client, connect, dial};
use tests::origin::Origin;
use tests::process::{Process, anonymous_bytes, is_closed_to_us, limit, open_fds, raise_own_limit};
use tests::{both_drivers, leave_out};

both_drivers![
    f18_a_hundred_clients,
    f18_the_client_at_its_mark,
    f18_the_endpoint_at_its_mark,
    f18_the_second_mark,
];

/// What a dedicated tunnel host has, by the original's advice.
const FILES: u64 = 8_192;
const CONNECTIONS: usize = 8_500;
const THREADS: usize = 4;
/// Descriptors that a program may keep of a flood: pooled connections, a socket that lingers.
const FDS_KEPT: usize = 16;
/// Memory that it may keep of a flood: 3 KiB for each connection that was open, which its tables and its allocator have
/// for the next flood …
const MEMORY_KEPT: u64 = FILES * 3 * 1024;
/// … which may cost at most so much more than the second: a KiB lost with each connection shows.
/// The first is no measure, for its tables grow in a heap without holes.
const MEMORY_MORE: u64 = 8 * 1024 * 1024;
const FLOODS: usize = 3;
const BACK_TO_NORMAL: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// A site that takes connections and ends each when the other side does; one thread for all.
struct Site {
    address: SocketAddr,
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Site {
    fn start() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(4_096).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let thread = Some(thread::spawn(move || hold(&listener, &stopped)));
        Self { address, stop, thread }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.shutdown(Shutdown::Both).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(thread::panicking() || ended.is_ok());
    }
}

fn hold(listener: &TcpListener, stopped: &UnixStream) {
    let set = poller::create(poller::CreateFlags::CLOEXEC).unwrap();
    let mut held: HashMap<u64, TcpStream> = HashMap::new();
    let watch = |fd: BorrowedFd<'_>| {
        let data = poller::EventData::new_u64(fd.as_raw_fd() as u64);
        poller::add(&set, fd, data, poller::EventFlags::IN).unwrap();
    };
    watch(listener.as_fd());
    watch(stopped.as_fd());
    loop {
        let mut events = [poller::Event {
            flags: poller::EventFlags::empty(),
            data: poller::EventData::new_u64(0),
        }; 256];
        let count = poller::wait(&set, &mut events, None).unwrap();
        for event in &events[..count] {
            let id = event.data.u64();
            if id == stopped.as_raw_fd() as u64 {
                return;
            } else if id == listener.as_raw_fd() as u64 {
                while let Ok((socket, _)) = listener.accept() {
                    watch(socket.as_fd());
                    held.insert(socket.as_raw_fd() as u64, socket);
                }
            } else if let Entry::Occupied(mut socket) = held.entry(id)
                && !matches!(socket.get_mut().read(&mut [0; 64]), Ok(1..))
            {
                socket.remove();
            }
        }
    }
}

/// This process has both the browsers' and the site's ends, of one test at a time. None where the machine does not allow
/// it, which is said.
fn alone() -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    let needed = 2 * CONNECTIONS as u64 + 500;
    if raise_own_limit() < needed {
        leave_out(&format!("needs {needed} open files, see ulimit -Hn"));
        return None;
    }
    Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

fn start_limited(cloud: &Cloud) -> Tunnel {
    let folder = tempfile::tempdir().unwrap();
    let mut command = cloud.sc(&folder.path().join("sc.log"));
    command.arg("--pidfile").arg(folder.path().join("sc.pid"));
    limit(&mut command, libc::RLIMIT_NOFILE, FILES);
    cloud.adopt(Process::start(&mut command), folder)
}

fn is_limit(answer: &Answer) {
    let head = &answer.head;
    assert_eq!(
        (answer.status(), head.field("Culvert-Error"), head.field("Retry-After")),
        (503, Some("limit"), Some("1")),
        "{head:?}"
    );
}

/// What both programs hold.
struct Level {
    ids: [u32; 2],
    fds: [usize; 2],
    memory: [u64; 2],
}

impl Level {
    fn of(cloud: &Cloud, tunnel: &Tunnel) -> Self {
        let ids = [tunnel.process.id(), cloud.endpoint()];
        Self {
            ids,
            fds: ids.map(open_fds),
            memory: ids.map(anonymous_bytes),
        }
    }

    /// Waits until descriptors and memory are where they were, though nobody asks for anything.
    fn regained(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let (fds, memory) = (self.ids.map(open_fds), self.ids.map(anonymous_bytes));
            let regained =
                (0..2).all(|i| fds[i] <= self.fds[i] + FDS_KEPT && memory[i] <= self.memory[i] + MEMORY_KEPT);
            let told = format!(
                "descriptors {:?} → {fds:?}, memory {:?} → {memory:?}",
                self.fds, self.memory
            );
            if regained {
                return println!("{told}");
            }
            assert!(Instant::now() < deadline, "{told}");
            fault_lasts(PAUSE);
        }
    }
}

/// Of the most that both programs held in each flood, the later ones are as the second.
fn is_level(peaks: &[[u64; 2]]) {
    for peak in &peaks[2..] {
        let grown = (0..2).any(|program| peak[program] > peaks[1][program] + MEMORY_MORE);
        assert!(!grown, "memory grows with each flood: {peaks:?}");
    }
}

/// From now on requests are served again, within the time that is promised.
fn back_to_normal(tunnel: &Tunnel, origin: &Origin) {
    let begun = Instant::now();
    let target = format!("{}/echo-head", origin.base());
    loop {
        match tunnel.client().get(&target) {
            Ok(answer) if answer.status() == 200 => break,
            Ok(answer) => is_limit(&answer),
            Err(e) => panic!("no answer: {e}"),
        }
        assert!(
            begun.elapsed() < BACK_TO_NORMAL,
            "still refused after {:?}",
            begun.elapsed()
        );
        fault_lasts(PAUSE);
    }
}

/// The suite of the original's table: nobody notices a limit.
fn f18_a_hundred_clients(driver: Driver) {
    const CLIENTS: u64 = 100;
    const EACH: u64 = 6;
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = start_limited(&cloud);
    let (base, open) = (origin.base(), Barrier::new(CLIENTS as usize));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (tunnel, base, open) = (&tunnel, &base, &open);
            scope.spawn(move || {
                let mut connections: Vec<_> = (0..EACH).map(|_| tunnel.client()).collect();
                open.wait();
                for round in 0..3 {
                    let seed = client * 1_000 + round;
                    for connection in &mut connections {
                        connection
                            .send("GET", &format!("{base}/bytes?seed={seed}&length=5000"), &[], &[])
                            .unwrap();
                    }
                    for connection in &mut connections {
                        let answer = connection.read_answer("GET").unwrap();
                        assert_eq!((answer.status(), answer.body.len()), (200, 5_000));
                    }
                }
            });
        }
    });
    assert_eq!(origin.counters().requests, CLIENTS * EACH * 3);
    tunnel.stop();
}

/// Opens [`CONNECTIONS`] opaque connections; those that were refused are counted.
fn flood(tunnel: &Tunnel, site: &Site) -> (Vec<TcpStream>, usize) {
    thread::scope(|scope| {
        let open = |thread: usize| {
            let (mut held, mut refused) = (Vec::new(), 0);
            for _ in (thread..CONNECTIONS).step_by(THREADS) {
                match connect(tunnel.proxy, &site.address.to_string()).unwrap() {
                    Ok(socket) => held.push(socket),
                    Err(answer) => {
                        is_limit(&answer);
                        refused += 1;
                    }
                }
            }
            (held, refused)
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || open(thread))).collect();
        let mut all = (Vec::new(), 0);
        for thread in threads {
            let (held, refused) = thread.join().unwrap();
            all.0.extend(held);
            all.1 += refused;
        }
        all
    })
}

fn f18_the_client_at_its_mark(driver: Driver) {
    let Some(_alone) = alone() else {
        return;
    };
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = start_limited(&cloud);
    tunnel.serves(&origin);
    let before = Level::of(&cloud, &tunnel);
    let mut peaks = Vec::new();
    for _ in 0..FLOODS {
        let site = Site::start();
        let (held, refused) = flood(&tunnel, &site);
        assert_eq!(held.len() + refused, CONNECTIONS);
        assert!(held.len() > FILES as usize * 15 / 16, "only {} were served", held.len());
        assert!(
            open_fds(before.ids[0]) < FILES as usize - 32,
            "none is left for sc itself"
        );
        let mut client = tunnel.client();
        is_limit(&client.get(&format!("{}/echo-head", origin.base())).unwrap());
        peaks.push(before.ids.map(anonymous_bytes));
        drop(held);
        back_to_normal(&tunnel, &origin);
        before.regained();
    }
    is_level(&peaks);
    assert!(!tunnel.log().contains("os error 24"), "{}", tunnel.log());
    tunnel.stop();
}

/// Reads the page of a connection that was refused before it asked for anything; none if nothing is there yet.
fn refusal(mut socket: &TcpStream) -> Option<()> {
    socket.set_nonblocking(true).unwrap();
    match socket.peek(&mut [0]) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
        peeked => assert_eq!(peeked.unwrap(), 1, "closed without a word"),
    }
    socket.set_nonblocking(false).unwrap();
    let mut client = Client::over(socket.try_clone().unwrap());
    let answer = client.read_answer("GET").unwrap();
    is_limit(&answer);
    assert!(answer.head.has("Connection", "close"));
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    Some(())
}

/// Takes out those that were refused by now.
fn refused(sockets: &mut Vec<TcpStream>) -> usize {
    let before = sockets.len();
    sockets.retain(|socket| refusal(socket).is_none());
    before - sockets.len()
}

fn f18_the_endpoint_at_its_mark(driver: Driver) {
    let Some(_alone) = alone() else {
        return;
    };
    let cloud = Cloud::with(CloudOptions {
        files: Some(FILES),
        ..CloudOptions::new(driver)
    });
    let (tunnel, origin) = (cloud.start_tunnel(), Origin::start());
    let mut first = tunnel.client();
    let target = format!("{}/echo-head", origin.base());
    assert_eq!(first.get(&target).unwrap().status(), 200);
    let before = Level::of(&cloud, &tunnel);
    let mut peaks = Vec::new();
    for _ in 0..FLOODS {
        let mut sockets: Vec<_> = (0..CONNECTIONS).map(|_| dial(tunnel.proxy).unwrap()).collect();
        let begun = Instant::now();
        let mut turned_away = 0;
        while turned_away < CONNECTIONS - FILES as usize {
            turned_away += refused(&mut sockets);
            assert!(begun.elapsed() < Duration::from_secs(20), "{turned_away} were refused");
        }
        assert!(
            sockets.len() > FILES as usize * 15 / 16,
            "only {} were taken",
            sockets.len()
        );
        // Who was there before is served, and so is the cloud's own business.
        assert_eq!(first.get(&target).unwrap().status(), 200);
        assert_eq!(cloud.tunnel(&tunnel.id)["is_ready"], true);
        peaks.push(before.ids.map(anonymous_bytes));
        drop(sockets);
        back_to_normal(&tunnel, &origin);
        before.regained();
    }
    is_level(&peaks);
    tunnel.stop();
}

fn f18_the_second_mark(driver: Driver) {
    const FEW: u64 = 512;
    let mut cloud = Cloud::with(CloudOptions {
        files: Some(FEW),
        ..CloudOptions::new(driver)
    });
    let (tunnel, origin) = (cloud.start_tunnel(), Origin::start());
    let endpoint = cloud.endpoint();
    let before = Level::of(&cloud, &tunnel);
    // All that the first mark lets in, and as many again, who neither read nor go.
    let sockets: Vec<_> = (0..2 * FEW).map(|_| dial(tunnel.proxy).unwrap()).collect();
    let begun = Instant::now();
    let mut most = 0;
    // Longer than a refused browser may linger: after that some of those who wait are let in.
    while begun.elapsed() < Duration::from_secs(5) {
        most = most.max(open_fds(endpoint));
        fault_lasts(PAUSE);
    }
    if !is_closed_to_us(endpoint) {
        assert!((330..FEW as usize - 16).contains(&most), "{most} descriptors of {FEW}");
    }
    assert_eq!(cloud.tunnel(&tunnel.id)["is_ready"], true);
    // Nobody was lost: each was told, or is served now.
    let mut sockets = sockets;
    let told = refused(&mut sockets);
    assert!(told > 32, "{told} were refused");
    let target = format!(
        "GET {}/echo-head HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        origin.base()
    );
    for socket in sockets {
        if refusal(&socket).is_some() {
            continue;
        }
        socket.set_nonblocking(false).unwrap();
        let mut client = Client::over(socket);
        client.send_raw(target.as_bytes()).unwrap();
        let answer = client.read_answer("GET").unwrap();
        if answer.status() != 200 {
            is_limit(&answer);
        }
    }
    back_to_normal(&tunnel, &origin);
    before.regained();
    tunnel.stop();
    let said = cloud.last_words();
    assert!(!said.contains("browsers were lost"), "{said}");
}
