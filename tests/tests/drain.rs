//! What a tunnel that ends waits for: exchanges and connections that carry something, and not browsers' connections that
//! are kept for later.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dataplane::limits::DRAIN_SILENCE_MAX;
use rustix::process::Signal;
use tests::bumping::{NAMES, World};
use tests::certificate::Company;
use tests::cloud::{Cloud, Driver, Tunnel, fault_lasts};
use tests::http::{Client, connect, dial};
use tests::origin::{Origin, STORED};
use tests::process::PATIENCE;
use tests::trial::Raise;
use tests::watch::Watch;
use tests::{both_drivers, tls};

both_drivers![f23_at_sigterm, at_delete];

/// For a machine that does other things too; far from every limit of a drain.
const AT_ONCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(500);
const LENGTH: u64 = 300_000;

/// Both ends of an opaque connection.
struct Opaque {
    browser: TcpStream,
    site: TcpStream,
}

impl Opaque {
    fn open(tunnel: &Tunnel) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let browser = connect(tunnel.proxy, &authority).unwrap().ok().unwrap();
        let site = listener.accept().unwrap().0;
        let mut opaque = Self { browser, site };
        opaque.speak();
        opaque
    }

    fn speak(&mut self) {
        let mut came = [0; 4];
        self.browser.write_all(b"ping").unwrap();
        self.site.read_exact(&mut came).unwrap();
        self.site.write_all(b"pong").unwrap();
        self.browser.read_exact(&mut came).unwrap();
    }
}

/// Reads up to the end, which is no byte away.
fn ends(mut socket: &TcpStream) -> Result<(), ErrorKind> {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    match socket.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => panic!("a byte instead of the end"),
        Err(e) => Err(e.kind()),
    }
}

/// Reads in TLS up to the end, which is no byte away and announced: a cut looks otherwise.
fn is_told_the_end(browser: Client) -> bool {
    browser.into_connection().read_head().unwrap().is_none()
}

/// Who asks for the end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// Whoever stops `sc`: jobs may use the tunnel to their end, and the end follows.
    Sigterm,
    /// A user of REST, who waits for what is open: nothing new begins.
    Delete,
}

fn f23_at_sigterm(driver: Driver) {
    drains(driver, By::Sigterm);
}

fn at_delete(driver: Driver) {
    drains(driver, By::Delete);
}

fn drains(driver: Driver, by: By) {
    let cloud = Cloud::start(driver);
    let mut watch = Watch::default();
    watch.add("sc-cloud", cloud.process.id());
    let World {
        cloud,
        mut tunnel,
        company,
        trust,
    } = World::within(cloud, Company::new(), &["--shards", "1"]);
    let origin = Origin::of(company.site(NAMES, |_| {}));
    let base = origin.base();
    let (proxy, asked) = (tunnel.proxy, &base);
    let secure = || tls::client_through(proxy, &trust, "localhost", origin.https.port()).map(Result::unwrap);
    let used = dial(proxy).unwrap();
    let answer = Client::over(used.try_clone().unwrap()).get(&format!("{asked}/echo-head"));
    assert_eq!(answer.unwrap().status(), 200);
    let unused = dial(proxy).unwrap();
    let mut in_tls = vec![secure().unwrap(), secure().unwrap()];
    assert_eq!(in_tls[0].get(STORED).unwrap().status(), 200);
    let silent = Opaque::open(&tunnel);
    let mut talking = Opaque::open(&tunnel);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let over_at_last = Raise(&over);
        let held = [
            scope.spawn(move || Client::dial(proxy)?.download(asked, 1, LENGTH, "&held")),
            scope.spawn(|| secure()?.download("", 2, LENGTH, "&held")),
        ];
        origin.wait("the answers that go on", |c| c.held == 2);
        let begun = Instant::now();
        match by {
            By::Sigterm => tunnel.process.signal(Signal::TERM),
            By::Delete => {
                let path = format!("/{}/tunnels/{}?wait_for_jobs=true", cloud.user, tunnel.id);
                assert_eq!(cloud.rest("DELETE", &path).status(), 200);
            }
        }
        let talk = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                talking.speak();
                fault_lasts(PAUSE);
            }
            talking
        });
        if by == By::Delete {
            assert_eq!((ends(&used), ends(&unused)), (Ok(()), Ok(())));
            assert!(in_tls.drain(..).all(is_told_the_end));
            assert!(begun.elapsed() < AT_ONCE, "kept for {:?}", begun.elapsed());
        }
        assert_eq!(origin.counters().held, 2, "the exchanges go on");

        // It is cut, not ended: nobody said that it was complete.
        assert_eq!(ends(&silent.browser), Err(ErrorKind::ConnectionReset));
        assert_eq!(ends(&silent.site), Err(ErrorKind::ConnectionReset));
        let took = begun.elapsed();
        let bound = DRAIN_SILENCE_MAX..DRAIN_SILENCE_MAX + AT_ONCE;
        assert!(bound.contains(&took), "{took:?}");

        // Who still carries something is waited for.
        origin.open_gate();
        for held in held {
            held.join().unwrap().unwrap();
        }
        drop(over_at_last);
        let mut talking = talk.join().unwrap();
        talking.speak();
        assert!(tunnel.process.is_running());
        if by == By::Sigterm {
            let answer = Client::over(used.try_clone().unwrap()).get(&format!("{base}/echo-head"));
            assert_eq!(answer.unwrap().status(), 200, "a job goes on");
            assert_eq!(in_tls[0].get("/echo-head").unwrap().status(), 200, "in TLS too");
            let hit = in_tls[0].get(STORED).unwrap();
            let status = hit.head.field("Cache-Status").unwrap_or_default();
            assert!(status.starts_with("culvert; hit"), "{status}");
        }
        let begun = Instant::now();
        drop(talking);
        tunnel.process.end(PATIENCE);
        cloud.await_end(&tunnel.id);
        assert_eq!((ends(&used), ends(&unused)), (Ok(()), Ok(())));
        assert!(in_tls.drain(..).all(is_told_the_end));
        assert!(
            begun.elapsed() < AT_ONCE,
            "waited for idle browsers: {:?}",
            begun.elapsed()
        );
    });
    watch.end();
}
