//! What the endpoint does not look into: sites that `sc` has no TLS with, certificates that only a browser can judge,
//! client certificates, hosts that are left alone, and all that is no TLS.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, mem, thread};

use dataplane::limits::PINNED_APART;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned, version};
use tests::both_drivers;
use tests::bumping::{NAMES, World, assert_blocked};
use tests::certificate::{self, Site};
use tests::cloud::{Driver, fault_lasts, until};
use tests::http::{Client, connect};
use tests::origin::Origin;
use tests::process::{PATIENCE, Process};
use tests::tls;

both_drivers![
    what_has_no_tls_in_common_with_sc_is_the_browsers,
    other_defects_are_the_browsers_to_judge,
    client_certificates_are_between_browser_and_site,
    who_has_a_client_certificate_is_served,
    what_cannot_be_looked_into_is_dropped_by_its_name,
    what_is_not_https_goes_through,
    who_takes_no_ecdsa_sees_the_site,
    hosts_can_be_left_alone,
    apps_that_pin_their_site_are_left_alone,
    a_site_that_speaks_first_is_relayed,
    a_site_that_cannot_be_bumped_any_more_is_left_alone,
];

/// Of a site that does not wait to be spoken to.
const GREETING: &[u8] = b"220 here I am\r\n";
/// In the place of a certificate: a SEQUENCE that ends too early.
const UNREADABLE: &[u8] = b"\x30\x82\x01\x00\x30\x03no certificate";
/// In one record (RFC 4346 section 7.4.1.3): TLS 1.1, TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA.
const SERVER_HELLO_OF_TLS_1_1: &[u8] =
    b"\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02just as random as thirty-two are\x00\xc0\x09\x00";
/// The type of a record.
const ALERT: u8 = 21;
/// For OpenSSL: also those that TLS 1.1 needs.
const ANY_CIPHER: &str = "DEFAULT@SECLEVEL=0";

/// What went over a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    browser: Vec<u8>,
    site: Vec<u8>,
}

/// Stands before a site, and tells of each connection once it is over.
struct Witness {
    port: u16,
    told: Receiver<(usize, Said)>,
}

impl Witness {
    fn before(site: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            for (i, near) in listener.incoming().enumerate() {
                let (near, far, tell) = (near.unwrap(), TcpStream::connect(site).unwrap(), tell.clone());
                thread::spawn(move || tell.send((i, pass(&near, &far))));
            }
        });
        Self { port, told }
    }

    fn first_two(&self) -> [Said; 2] {
        let mut two = [(); 2].map(|()| self.told.recv_timeout(PATIENCE).expect("two connections"));
        two.sort_by_key(|(i, _)| *i);
        two.map(|(_, said)| said)
    }
}

fn pass(near: &TcpStream, far: &TcpStream) -> Said {
    thread::scope(|both| {
        let site = both.spawn(|| carry(far, near));
        let browser = carry(near, far);
        Said {
            browser,
            site: site.join().unwrap(),
        }
    })
}

/// To the end, also what the other side does not take any more.
fn carry(mut from: &TcpStream, mut to: &TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut bytes = [0; 4_096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        all.extend_from_slice(&bytes[..count]);
        let _ = to.write_all(&bytes[..count]);
    }
    let _ = to.shutdown(Shutdown::Write);
    all
}

/// A browser's connection that remembers what went over it.
#[derive(Clone)]
struct Wire(Arc<(TcpStream, Mutex<Said>)>);

impl Wire {
    fn over(socket: TcpStream) -> Self {
        Self(Arc::new((socket, Mutex::default())))
    }

    /// Says no more, and hears the site out.
    fn end(mut self) -> Said {
        self.0.0.shutdown(Shutdown::Write).unwrap();
        io::copy(&mut self, &mut io::sink()).unwrap();
        mem::take(&mut self.0.1.lock().unwrap())
    }
}

impl Read for Wire {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let (mut socket, said) = (&self.0.0, &self.0.1);
        let count = socket.read(out)?;
        said.lock().unwrap().site.extend_from_slice(&out[..count]);
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (mut socket, said) = (&self.0.0, &self.0.1);
        let count = socket.write(bytes)?;
        said.lock().unwrap().browser.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A browser that has shaken hands.
type Shaken = StreamOwned<ClientConnection, Wire>;

fn shake(config: &Arc<ClientConfig>, mut wire: Wire) -> io::Result<Shaken> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(config.clone(), name).unwrap();
    while client.is_handshaking() {
        client.complete_io(&mut wire)?;
    }
    Ok(StreamOwned::new(client, wire))
}

fn leaf(shaken: &Shaken) -> &[u8] {
    &shaken.conn.peer_certificates().unwrap()[0]
}

fn refusal(shaken: io::Result<Shaken>) -> String {
    shaken.err().expect("there is no handshake").to_string()
}

/// `openssl s_server` as this site.
fn openssl_server(files: &Path, site: &Site, arguments: &[&str]) -> (Process, SocketAddr) {
    let file = |name, text| {
        let path = files.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", "127.0.0.1:0", "-cert"]);
    command.arg(file("certificate.pem", site.leaf_pem())).arg("-key");
    command.arg(file("key.pem", site.key_pem())).args(arguments);
    let server = Process::start(&mut command);
    let address = server.line("its address", |line| line.strip_prefix("ACCEPT ")?.parse().ok());
    (server, address)
}

/// A site that says this to whatever is said first, and nothing else.
fn says(text: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut said = [0; 4_096];
            let _ = socket.read(&mut said).and_then(|_| socket.write_all(text));
            let _ = io::copy(&mut socket, &mut io::sink());
        }
    });
    address
}

/// What keeps TLS from ending here is learnt from the first CONNECT, which is relayed already: both ends hear each
/// other, byte for byte. `sees` has the handshake of a browser of this kind.
fn first_sight(
    world: &World,
    site: SocketAddr,
    browser: &Arc<ClientConfig>,
    why: &str,
    sees: impl FnOnce(io::Result<Shaken>),
) -> Said {
    let witness = Witness::before(site);
    let place = format!("localhost:{}", witness.port);
    let wire = Wire::over(connect(world.tunnel.proxy, &place).unwrap().unwrap());
    sees(shake(browser, wire.clone()));
    let said = wire.end();
    let [looked, relayed] = witness.first_two();
    assert_eq!(relayed, said, "{why}");
    assert_ne!(looked.browser, said.browser, "{why}: sc looks for itself");
    assert_left_alone(world, &place, why);
    said
}

/// Both logs say so, and once.
fn assert_left_alone(world: &World, place: &str, why: &str) {
    let seen = format!("tls: {place}: {why}");
    until("sc says why", || world.tunnel.log().contains(&seen));
    let left = format!("{place}: TLS with it is left to browsers for a while; the log of sc says why");
    until("the endpoint says so", || world.cloud.process.stderr().contains(&left));
    assert_eq!(world.tunnel.log().matches(&seen).count(), 1, "{}", world.tunnel.log());
}

fn what_has_no_tls_in_common_with_sc_is_the_browsers(driver: Driver) {
    let world = World::start(driver);
    // HTTP/2 and nothing else.
    let origin = world.origin();
    let mut http2 = (*origin.site.server_config()).clone();
    http2.alpn_protocols = vec![b"h2".to_vec()];
    origin.set_tls(Arc::new(http2));
    let roots = tls::read(&world.company_pem()).unwrap();
    let browser = certificate::client_config_of(&roots, rustls::ALL_VERSIONS, &["h2", "http/1.1"]);
    let why = "the site does not agree to HTTP/1.1 (ALPN)";
    first_sight(&world, origin.https, &browser, why, |shaken| {
        let shaken = shaken.unwrap();
        assert_eq!(shaken.conn.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(leaf(&shaken), origin.site.leaf());
        Client::over(shaken).download("", 1, 100_000, "").unwrap();
    });

    // TLS 1.1: a site that says so, and one that has never heard of a later one.
    let why = "the site speaks neither TLS 1.2 nor TLS 1.3";
    let files = tempfile::tempdir().unwrap();
    let of_old = ["-tls1_1", "-cipher", ANY_CIPHER, "-www"];
    let (_server, old) = openssl_server(files.path(), &origin.site, &of_old);
    let said = first_sight(&world, old, &browser, why, |shaken| {
        assert_eq!(refusal(shaken), "received fatal alert: ProtocolVersion");
    });
    assert!(said.site.starts_with(&[ALERT]), "{said:?}");
    let older = says(SERVER_HELLO_OF_TLS_1_1);
    let said = first_sight(&world, older, &browser, why, |shaken| {
        let refused = refusal(shaken);
        assert!(refused.contains("ServerDoesNotSupportTls12Or13"), "{refused}");
    });
    assert_eq!(said.site, SERVER_HELLO_OF_TLS_1_1);
    // A client that still speaks it.
    let mut client = Command::new("openssl");
    client.args([
        "s_client",
        "-cipher",
        ANY_CIPHER,
        "-proxy",
        &world.tunnel.proxy.to_string(),
    ]);
    client.args(["-connect", &format!("localhost:{}", old.port())]);
    let mut client = Process::start(&mut client);
    assert_eq!(client.exit_code(PATIENCE), 0, "{}", client.stderr());
    let shown = client.stdout();
    assert!(shown.contains("Protocol  : TLSv1.1"), "{shown}");
    assert!(shown.contains(origin.site.leaf_pem().trim()), "{shown}");
    assert_left_alone(&world, &format!("localhost:{}", old.port()), why);
}

/// They get the site's own certificate.
fn other_defects_are_the_browsers_to_judge(driver: Driver) {
    let world = World::start(driver);
    let misused = world.company.site(NAMES, |c| {
        c.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection]
    });
    let ours = misused.client_config();
    let own_ca = Site::self_signed(NAMES, true);
    for (site, seen, why) in [
        (
            misused,
            "extended key usage",
            "the site's certificate is not for servers (extended key usage)",
        ),
        (
            own_ca,
            "CaUsedAsEndEntity",
            "the site's certificate is not acceptable: ",
        ),
    ] {
        let origin = Origin::of(site);
        first_sight(&world, origin.https, &ours, why, |shaken| {
            let refused = refusal(shaken);
            assert!(refused.contains(seen), "{refused}");
        });
        assert_eq!(origin.counters().requests, 0);
    }
    // What cannot be read reaches whoever may be able to.
    let origin = world.origin();
    origin.set_tls(origin.site.server_config_showing(UNREADABLE));
    let why = "the site's certificate cannot be read";
    let said = first_sight(&world, origin.https, &ours, why, |shaken| {
        assert_eq!(refusal(shaken), "invalid peer certificate: BadEncoding");
    });
    assert!(said.site.windows(UNREADABLE.len()).any(|bytes| bytes == UNREADABLE));
}

/// In TLS 1.3 the site says only behind the handshake that it will not do without one.
fn client_certificates_are_between_browser_and_site(driver: Driver) {
    let world = World::start(driver);
    let why = "the site asks for a client certificate";
    for version in [&version::TLS12, &version::TLS13] {
        let origin = world.origin();
        let trust = origin.site.client_config();
        origin.set_tls(origin.site.server_config_of(&[version], true));
        first_sight(&world, origin.https, &trust, why, |shaken| {
            assert_eq!(shaken.is_ok(), version == &version::TLS13, "{version:?}");
            let refused = match shaken {
                Ok(mut shaken) => shaken.read(&mut [0]).expect_err("it has none"),
                Err(refused) => refused,
            };
            assert_eq!(refused.to_string(), "received fatal alert: CertificateRequired");
        });
        let place = format!("localhost:{}", origin.https.port());
        let refused = world.browser_of(&origin, &trust).and_then(|mut client| client.get("/"));
        refused.expect_err("it has none either");
        assert_left_alone(&world, &place, why);
        // What was learnt holds for the next connection, without another look.
        origin.set_tls(origin.site.server_config());
        let before = origin.counters().connections;
        let mut client = world.browser_of(&origin, &trust).unwrap();
        client.download("", 1, 1_000, "").unwrap();
        assert_eq!(origin.counters().connections, before + 1, "{version:?}");
        assert_left_alone(&world, &place, why);
    }
}

fn who_has_a_client_certificate_is_served(driver: Driver) {
    let world = World::start(driver);
    let person = world.company.site(&["ada.test"], |_| {});
    for (version, name) in [(&version::TLS12, "-tls1_2"), (&version::TLS13, "-tls1_3")] {
        let files = tempfile::tempdir().unwrap();
        let site = world.company.site(NAMES, |_| {});
        let root = world.company_pem();
        let asks = [
            "-CAfile",
            root.to_str().unwrap(),
            "-Verify",
            "1",
            "-verify_return_error",
        ];
        let (_server, address) = openssl_server(files.path(), &site, &[&asks[..], &[name, "-www"]].concat());
        let browser = site.client_config_as(&person, version);
        // The first CONNECT, when nothing is known of it, and the next.
        for _ in 0..2 {
            let client = tls::client_through(world.tunnel.proxy, &browser, "localhost", address.port());
            let page = client.unwrap().unwrap().get("/").unwrap();
            assert_eq!(page.status(), 200);
            // The page is about its reader.
            let text = page.text();
            let (_, reader) = text.split_once("Client certificate\n").expect("it has seen one");
            assert!(reader.contains(person.leaf_pem().trim()), "{text}");
        }
        let place = format!("localhost:{}", address.port());
        assert_left_alone(&world, &place, "the site asks for a client certificate");
    }
}

/// `-F` on what is seen to stay opaque only when the answer to CONNECT has been: of its URLs `https://HOST:PORT/` is
/// known.
fn what_cannot_be_looked_into_is_dropped_by_its_name(driver: Driver) {
    let world = World::with(driver, &["-F", "^https://localhost:[0-9]+/$"]);
    let origin = world.origin();
    // Where TLS ends here each URL is seen for what it is.
    let mut client = world.browser(&origin).unwrap();
    client.download("", 1, 1_000, "").unwrap();
    assert_blocked(&client.get("/").unwrap(), "blocked");
    let asking = world.origin();
    asking.set_tls(asking.site.server_config_of(&[&version::TLS12], true));
    let trust = asking.site.client_config();
    let cut = world.browser_of(&asking, &trust).err().expect("it is cut");
    let cuts = [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof];
    assert!(cuts.contains(&cut.kind()), "{cut}");
    // Now it is known before.
    let site = format!("localhost:{}", asking.https.port());
    let refused = connect(world.tunnel.proxy, &site).unwrap().expect_err("it is opaque");
    assert_blocked(&refused, "blocked");
    let http = format!("localhost:{}", asking.http.port());
    let mut socket = connect(world.tunnel.proxy, &http).unwrap().unwrap();
    socket.write_all(b"neither TLS nor HTTP").unwrap();
    let mut came = Vec::new();
    let _ = socket.read_to_end(&mut came);
    assert_eq!(came, b"");
    assert_eq!(asking.counters().requests, 0);
    // A name that no rule has is relayed: the site itself wants the browser's certificate.
    let by_address = tls::client_through(world.tunnel.proxy, &trust, "127.0.0.1", asking.https.port());
    let answered = by_address.and_then(|client| client.expect("CONNECT is answered with 200").get("/"));
    let alert = answered.expect_err("the browser has none").to_string();
    assert!(alert.contains("ertificate"), "{alert}");
    let counted = || world.cloud.tunnel(&world.tunnel.id)["culvert"]["errors"]["blocked"] == 4;
    until("all four are counted", counted);
}

fn what_is_not_https_goes_through(driver: Driver) {
    let world = World::start(driver);
    let origin = world.origin();
    let tls12 = origin.site.server_config_of(&[&version::TLS12], false);
    origin.set_tls(tls12);
    world.browser(&origin).unwrap().download("", 1, 1_000, "").unwrap();
    let roots = tls::read(&world.cloud.ca()).unwrap();
    // A browser of TLS 1.2, and one that offers another protocol alone.
    let old = certificate::client_config_of(&roots, &[&version::TLS12], &[]);
    world
        .browser_of(&origin, &old)
        .unwrap()
        .download("", 1, 1_000, "")
        .unwrap();
    let foreign = certificate::client_config_of(&roots, rustls::ALL_VERSIONS, &["acme-tls/1"]);
    let error = world
        .browser_of(&origin, &foreign)
        .err()
        .expect("the site's own leaf")
        .to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

/// The tunnel's leaves are of ECDSA: whoever takes none sees the site's own.
fn who_takes_no_ecdsa_sees_the_site(driver: Driver) {
    let world = World::start(driver);
    let origin = Origin::of(world.company.rsa_site(NAMES));
    let company = tls::read(&world.company_pem()).unwrap();
    let old = certificate::rsa_client_config(&company);
    // Twice: the second time the site is known.
    for _ in 0..2 {
        let mut client = world.browser_of(&origin, &old).unwrap();
        client.download("", 1, 1_000, "").unwrap();
        world.browser(&origin).unwrap().download("", 1, 1_000, "").unwrap();
    }
}

/// A domain with all below it, or what is below it alone: browsers see the site's own certificate, and nothing is
/// cached, of HTTP neither. Other names of the same site are none of that.
fn hosts_can_be_left_alone(driver: Driver) {
    let list = "left.localhost,*.below.localhost,.dotted.localhost";
    let hosts = [
        ("localhost", false),
        ("127.0.0.1", false),
        ("left.localhost", true),
        ("LEFT.Localhost.", true),
        ("a.left.localhost", true),
        ("notleft.localhost", false),
        ("below.localhost", false),
        ("a.below.localhost", true),
        ("b.a.below.localhost", true),
        ("dotted.localhost", false),
        ("a.dotted.localhost", true),
    ];
    let world = World::with(driver, &["-B", list]);
    let names = hosts.map(|(host, _)| host.trim_end_matches('.'));
    let origin = Origin::of(world.company.site(&names, |_| {}));
    let own = origin.site.client_config();
    let inside = |host: &str, port: u16| connect(world.tunnel.proxy, &format!("{host}:{port}")).unwrap().unwrap();
    let [http, https] = [&origin.http, &origin.https].map(SocketAddr::port);
    for (number, (host, is_left_alone)) in hosts.into_iter().enumerate() {
        let in_tls = |trust| {
            let client = tls::client(trust, host.trim_end_matches('.'), inside(host, https));
            client.map(|client| client.of_host(&format!("{host}:{https}")))
        };
        let shaken = in_tls(&world.trust);
        let untrusted = |error: &io::Error| error.to_string().contains("UnknownIssuer");
        assert_eq!(shaken.as_ref().err().is_some_and(untrusted), is_left_alone, "{host}");
        let mut secure = shaken.or_else(|_| in_tls(&own)).unwrap();
        let site = format!("{host}:{http}");
        let (mut whole, mut plain) = (world.tunnel.client(), Client::over(inside(host, http)).of_host(&site));
        let target = |scheme| format!("/bytes/{scheme}-{number}?length=10&field=Cache-Control:max-age=600");
        let (within, without) = (target("https"), target("http"));
        let url = format!("http://{site}{without}");
        for answer in [
            secure.get(&within),
            secure.get(&within),
            whole.get(&url),
            plain.get(&without),
        ] {
            let answer = answer.unwrap();
            let is_cached = answer.head.field("Cache-Status").is_some();
            assert_eq!((answer.status(), is_cached), (200, !is_left_alone), "{host}");
        }
        let times = if is_left_alone { 2 } else { 1 };
        for scheme in ["https", "http"] {
            let asked = origin.counters().path(&format!("/bytes/{scheme}-{number}"));
            assert_eq!(asked, times, "{scheme}, {host}");
        }
    }
}

fn apps_that_pin_their_site_are_left_alone(driver: Driver) {
    let wanted = Origin::start();
    let auth = format!("localhost:{}:ada:secret", wanted.https.port());
    let world = World::with(driver, &["-a", &auth]);
    let inspected = World::with(driver, &["-F", "/unwanted"]);
    let origin = world.origin();
    let pinned = origin.site.client_config();
    // Where requests are to be looked at it is not given up: the site of `-a`, and all under `-F`.
    wanted.set_tls(world.company.site(NAMES, |_| {}).server_config());
    let within = inspected.origin();
    let refuses = |world: &World, origin: &Origin| {
        let error = world.browser_of(origin, &pinned).err().expect("not the pinned one");
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    };
    // Refusals close upon each other are one.
    let started = Instant::now();
    let mut client = loop {
        refuses(&world, &wanted);
        refuses(&inspected, &within);
        match world.browser_of(&origin, &pinned) {
            Ok(client) => break client,
            Err(error) => assert!(error.to_string().contains("UnknownIssuer"), "{error}"),
        }
        assert!(started.elapsed() < PATIENCE, "it is never left alone");
        fault_lasts(Duration::from_millis(100));
    };
    assert!(started.elapsed() >= 2 * PINNED_APART);
    client.download("", 1, 1_000, "").unwrap();
    let left = format!(
        "localhost:{}: its clients refuse the tunnel's certificate: left alone for a while",
        origin.https.port()
    );
    until("it is logged", || world.cloud.process.stderr().contains(&left));
    world.browser(&wanted).unwrap().download("", 1, 1_000, "").unwrap();
    inspected.browser(&within).unwrap().download("", 1, 1_000, "").unwrap();
}

fn a_site_that_speaks_first_is_relayed(driver: Driver) {
    let world = World::start(driver);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (connected, greets) = mpsc::channel();
    thread::spawn(move || {
        greets.recv().unwrap();
        // Where it greets at the very moment when it is asked for TLS, the browser gets another connection.
        for socket in listener.incoming() {
            let _ = socket.and_then(greet_and_echo);
        }
    });
    let mut socket = connect(world.tunnel.proxy, &address.to_string()).unwrap().unwrap();
    connected.send(()).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(world.trust.clone(), name)
        .unwrap()
        .write_tls(&mut hello)
        .unwrap();
    socket.write_all(&hello).unwrap();
    let mut came = vec![0; GREETING.len()];
    socket.read_exact(&mut came).unwrap();
    assert_eq!(came, GREETING);
    socket.shutdown(Shutdown::Write).unwrap();
    let mut echoed = Vec::new();
    socket.read_to_end(&mut echoed).unwrap();
    assert_eq!(echoed, hello);
}

fn greet_and_echo(mut socket: TcpStream) -> io::Result<()> {
    socket.write_all(GREETING)?;
    let mut all = Vec::new();
    socket.read_to_end(&mut all)?;
    socket.write_all(&all)
}

fn a_site_that_cannot_be_bumped_any_more_is_left_alone(driver: Driver) {
    let world = World::start(driver);
    let origin = world.origin();
    let mut client = world.browser(&origin).unwrap();
    client.download("", 1, 1_000, "").unwrap();
    // It asks for client certificates from now on.
    origin.set_tls(origin.site.server_config_of(&[&version::TLS12], true));
    origin.close_connections();
    let answer = client.get("/bytes?seed=1&length=10").unwrap();
    assert_blocked(&answer, "tls");
    assert!(answer.head.has("Connection", "close"));
    // The next browser is on its own with it.
    let own = origin.site.client_config();
    let refused = world.browser_of(&origin, &own).and_then(|mut client| client.get("/"));
    let error = refused.expect_err("it has no certificate").to_string();
    assert!(!error.contains("UnknownIssuer"), "{error}");
    origin.set_tls(origin.site.server_config());
    let mut client = world.browser_of(&origin, &own).unwrap();
    client.download("", 1, 1_000, "").unwrap();
}
