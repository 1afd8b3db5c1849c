//! Browsers whose TLS ends at the endpoint.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dataplane::client::Driver;
use dataplane::rules::{FastFail, Rules};
use dataplane::settings::Times;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use socket2::SockRef;

use crate::reload::{reload, switch};
use crate::tls::{Connection, bumping, bumping_within, connected, domains, secure_site};
use crate::tunnel::{Browser, SETTINGS, Tunnel, field, read_head, site};

/// One that answers each POST.
fn answering_site() -> SocketAddr {
    secure_site(|mut socket| {
        while read_head(&mut socket).starts_with("POST") {
            socket
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .unwrap();
        }
    })
}

fn request(site: SocketAddr) -> Vec<u8> {
    format!(
        "POST / HTTP/1.1\r\nHost: localhost:{}\r\nContent-Length: 0\r\n\r\n",
        site.port()
    )
    .into_bytes()
}

#[test]
fn rules_that_leave_a_site_alone_reach_browsers_within() {
    let left_alone = Rules {
        no_bump: domains("localhost"),
        ..Rules::default()
    };
    for driver in [Driver::Epoll, Driver::Auto] {
        let tunnel = bumping(driver);
        let site = answering_site();
        let mut client = connected(&tunnel, tunnel.browser(), site).unwrap();
        client.get_mut().write_all(&request(site)).unwrap();
        let answer = read_head(&mut client);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let mut idle = connected(&tunnel, tunnel.browser(), site).unwrap();
        let asked = request(site);
        let (begun, rest) = asked.split_at(20);
        client.get_mut().write_all(begun).unwrap();
        // By its answer the beginning of the other request has been read.
        assert_eq!(tunnel.get("http://nobody.invalid/").status, 502);
        switch(&tunnel, SETTINGS + 1, left_alone.clone());
        // Nothing was asked on it: it is closed, so that the browser does not ask over it.
        assert_eq!(idle.fill_buf().unwrap(), b"");
        client.get_mut().write_all(rest).unwrap();
        let answer = read_head(&mut client);
        assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
        assert_eq!(field(&answer, "Connection"), Some("close"));
        tunnel.stop();
    }
}

/// The endpoint is older than the rules of `sc`, or taken over: `sc` speaks no TLS for it with what `-B` names.
#[test]
fn the_client_leaves_alone_what_its_own_rules_do() {
    for driver in [Driver::Epoll, Driver::Auto] {
        let tunnel = bumping(driver);
        let site = answering_site();
        let mut within = connected(&tunnel, tunnel.browser(), site).unwrap();
        let mut post = || {
            within.get_mut().write_all(&request(site)).unwrap();
            read_head(&mut within)
        };
        assert!(post().starts_with("HTTP/1.1 200"));
        let rules = Rules {
            no_bump: domains("localhost"),
            ..Rules::default()
        };
        reload(&tunnel, SETTINGS + 1, rules);
        until("the rules are in force", || {
            let answer = post();
            field(&answer, "Culvert-Error") == Some("denied") && answer.starts_with("HTTP/1.1 403")
        });
        let elsewhere = secure_site(|mut socket| drop(socket.fill_buf().map(<[u8]>::len)));
        let shown = connected(&tunnel, tunnel.browser(), elsewhere).unwrap_err();
        let shown = shown.to_string();
        assert!(
            shown.contains("invalid peer certificate"),
            "not the site's own: {shown}"
        );
        tunnel.stop();
    }
}

/// As above: what `-F` drops is looked for in requests that come out of TLS as well.
#[test]
fn the_client_drops_within_what_its_own_rules_do() {
    for driver in [Driver::Epoll, Driver::Auto] {
        let tunnel = bumping(driver);
        let secret = Arc::new(AtomicUsize::new(0));
        let count = secret.clone();
        let site = secure_site(move |mut socket| {
            loop {
                let head = read_head(&mut socket);
                if head.is_empty() {
                    return;
                }
                count.fetch_add(usize::from(head.starts_with("GET /secret")), Ordering::SeqCst);
                socket.get_mut().write_all(ANSWER.as_bytes()).unwrap();
            }
        });
        let get = |path: &str| {
            let mut within = connected(&tunnel, tunnel.browser(), site).unwrap();
            let head = format!("GET {path} HTTP/1.1\r\nHost: localhost:{}\r\n\r\n", site.port());
            within.get_mut().write_all(head.as_bytes()).unwrap();
            read_head(&mut within)
        };
        assert!(get("/secret").starts_with("HTTP/1.1 200"));
        let rules = Rules {
            fast_fail: FastFail::compile(&["^https://localhost:[0-9]+/secret".to_owned()]).unwrap(),
            ..Rules::default()
        };
        reload(&tunnel, SETTINGS + 1, rules);
        until("the rules are in force", || {
            field(&get("/secret"), "Culvert-Error") == Some("denied")
        });
        let before = secret.load(Ordering::SeqCst);
        let answer = get("/secret?x");
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert_eq!(secret.load(Ordering::SeqCst), before);
        assert!(get("/public").starts_with("HTTP/1.1 200"));
        tunnel.stop();
    }
}

#[test]
fn a_cut_does_not_wait_for_a_browser_that_reads_nothing() {
    for driver in [Driver::Epoll, Driver::Auto] {
        // `sc` gives up what does not move; the endpoint would wait for minutes.
        let times = Times {
            idle: Duration::from_millis(500),
            ..Times::default()
        };
        let tunnel = bumping_within(driver, times);
        let site = secure_site(move |mut socket| {
            if !read_head(&mut socket).is_empty() {
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n";
                let _ = socket
                    .get_mut()
                    .write_all(&[head.as_bytes(), &[b'x'; 9_000_000]].concat());
            }
        });
        let (near, far) = small_pair();
        tunnel.hand_over(&near, 0);
        drop(near);
        let mut client = connected(&tunnel, Browser::over(far), site).unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: localhost:{}\r\n\r\n", site.port());
        client.get_mut().write_all(request.as_bytes()).unwrap();
        client.fill_buf().unwrap();
        until("the stream has ended", || tunnel.endpoint.report().streams_open == 0);
        tunnel.stop();
    }
}

/// What it says of its site to a browser that speaks at that very moment is the end, and nobody stays behind.
#[test]
fn a_site_that_closes_while_it_is_looked_at_leaves_nothing_open() {
    for driver in [Driver::Epoll, Driver::Auto] {
        let tunnel = bumping(driver);
        let rounds = AtomicU32::new(0);
        let site = site(move |socket| {
            let round = rounds.fetch_add(1, Ordering::Relaxed);
            let accepted = Instant::now();
            while accepted.elapsed() < Duration::from_micros(u64::from(round % 60) * 10) {
                std::hint::spin_loop();
            }
            drop(socket);
        });
        for _ in 0..240 {
            // A page inside TLS, or the end.
            drop(connected(&tunnel, tunnel.browser(), site));
        }
        until("all is over at sc", || tunnel.client_report().streams_open == 0);
        tunnel.stop();
    }
}

/// What `openssl s_server` does when it is told to: it asks for a client certificate when the request is there already.
struct Renegotiating {
    child: Child,
    output: BufReader<ChildStdout>,
    site: SocketAddr,
    gate: Arc<Gate>,
    _files: tempfile::TempDir,
}

impl Renegotiating {
    fn start() -> Self {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let files = tempfile::tempdir().unwrap();
        let file = |name, text| {
            let path = files.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut child = Command::new("openssl")
            .args(["s_server", "-tls1_2", "-accept", "127.0.0.1:0", "-cert"])
            .arg(file("certificate.pem", cert.pem()))
            .arg("-key")
            .arg(file("key.pem", signing_key.serialize_pem()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the openssl program is needed");
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let line = shown(&mut output, "ACCEPT ");
        let server = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        let gate = Arc::new(Gate::default());
        let within = gate.clone();
        Self {
            child,
            output,
            site: site(move |browser| within.pass(&browser.into_inner(), server)),
            gate,
            _files: files,
        }
    }

    /// Waits for a request, and asks.
    fn renegotiate(&mut self) {
        self.await_request();
        self.say("R\n");
    }

    /// The same, and hears nothing of it any more: it would end the connection when it is refused, and others do not.
    fn renegotiate_deaf(&mut self) {
        self.await_request();
        let gate = self.gate.clone();
        let connection = gate.accepted.load(Ordering::SeqCst);
        gate.held.store(connection, Ordering::SeqCst);
        self.say("R\n");
        until("it is refused", || gate.refused.load(Ordering::SeqCst) == connection);
    }

    fn await_request(&mut self) {
        shown(&mut self.output, "Content-Length: 0");
    }

    fn say(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }
}

/// Stands before it, and counts its connections from 1.
#[derive(Default)]
struct Gate {
    accepted: AtomicUsize,
    /// The last connection from which nothing is passed on any more.
    held: AtomicUsize,
    /// The last from which something was held.
    refused: AtomicUsize,
}

impl Gate {
    fn pass(&self, mut near: &TcpStream, server: SocketAddr) {
        let connection = self.accepted.fetch_add(1, Ordering::SeqCst) + 1;
        let far = TcpStream::connect(server).unwrap();
        std::thread::scope(|both| {
            both.spawn(|| {
                // Either end may just be gone.
                let _ = std::io::copy(&mut &far, &mut &*near);
                let _ = near.shutdown(Shutdown::Both);
            });
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = near.read(&mut bytes) {
                if self.held.load(Ordering::SeqCst) >= connection {
                    self.refused.fetch_max(connection, Ordering::SeqCst);
                } else if (&far).write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            let _ = far.shutdown(Shutdown::Both);
        });
    }
}

impl Drop for Renegotiating {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line that begins so.
fn shown(output: &mut impl BufRead, begin: &str) -> String {
    let mut lines = output.lines().map(Result::unwrap);
    lines.find(|line| line.starts_with(begin)).expect(begin)
}

#[test]
fn a_site_that_asks_for_a_certificate_late_is_left_to_browsers() {
    for driver in [Driver::Epoll, Driver::Auto] {
        let tunnel = bumping(driver);
        let mut asking = Renegotiating::start();
        let mut client = connected(&tunnel, tunnel.browser(), asking.site).unwrap();
        client.get_mut().write_all(&request(asking.site)).unwrap();
        asking.renegotiate();
        let answer = read_head(&mut client);
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        assert_eq!(field(&answer, "Culvert-Error"), Some("tls"));
        assert_eq!(field(&answer, "Connection"), Some("close"));
        is_left_alone(&tunnel, asking.site);
        tunnel.stop();
    }
}

/// The next browser is on its own with the site.
fn is_left_alone(tunnel: &Tunnel, site: SocketAddr) {
    let own = connected(tunnel, tunnel.browser(), site).unwrap_err().to_string();
    assert!(own.contains("invalid peer certificate"), "not the site's own: {own}");
}

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[test]
fn a_site_that_denies_what_it_asks_a_certificate_for_is_left_to_browsers() {
    for (driver, status) in [(Driver::Epoll, 401), (Driver::Auto, 403)] {
        let tunnel = bumping(driver);
        let mut asking = Renegotiating::start();
        let mut client = connected(&tunnel, tunnel.browser(), asking.site).unwrap();
        let mut public = connected(&tunnel, tunnel.browser(), asking.site).unwrap();
        let post = |client: &mut BufReader<Connection>, site| client.get_mut().write_all(&request(site)).unwrap();
        // It only wanted new keys, as it turns out; but it must not ask a second time on that connection.
        post(&mut client, asking.site);
        asking.renegotiate_deaf();
        asking.say(ANSWER);
        let answer = read_head(&mut client);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        post(&mut client, asking.site);
        asking.renegotiate_deaf();
        assert_eq!(asking.gate.accepted.load(Ordering::SeqCst), 2);
        asking.say(&format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n"));
        let answer = read_head(&mut client);
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        assert_eq!(field(&answer, "Culvert-Error"), Some("tls"));
        assert_eq!(field(&answer, "Connection"), Some("close"));
        is_left_alone(&tunnel, asking.site);
        // Who was shown a leaf before goes on.
        post(&mut public, asking.site);
        asking.await_request();
        asking.say(ANSWER);
        let answer = read_head(&mut public);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        tunnel.stop();
    }
}

#[test]
fn a_site_that_asks_for_a_certificate_and_then_says_nothing_is_left_to_browsers() {
    for driver in [Driver::Epoll, Driver::Auto] {
        let times = Times {
            first_byte: Duration::from_secs(1),
            ..Times::default()
        };
        let tunnel = bumping_within(driver, times);
        let mut asking = Renegotiating::start();
        let mut client = connected(&tunnel, tunnel.browser(), asking.site).unwrap();
        client.get_mut().write_all(&request(asking.site)).unwrap();
        asking.renegotiate_deaf();
        let answer = read_head(&mut client);
        assert_eq!(field(&answer, "Culvert-Error"), Some("tls"), "{answer}");
        is_left_alone(&tunnel, asking.site);
        tunnel.stop();
    }
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "{what}: in vain");
        std::thread::yield_now();
    }
}

/// Both ends of a connection that holds few bytes.
fn small_pair() -> (TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener).set_send_buffer_size(2 * 1024).unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    SockRef::from(&far).set_recv_buffer_size(2 * 1024).unwrap();
    far.set_read_timeout(Some(crate::tunnel::PATIENCE)).unwrap();
    let (near, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    (near, far)
}
