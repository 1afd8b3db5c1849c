//! What `sc` says to a site in TLS, and whom it believes there; and which site is meant, where names differ.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use tests::both_drivers;
use tests::certificate::{self, Company};
use tests::cloud::{Cloud, Driver, Tunnel};
use tests::http::{Client, connect};
use tests::namespace::in_world;
use tests::origin::Origin;
use tests::process::{PATIENCE, Process};
use tests::socket::join;
use tests::tls;

both_drivers![
    a_site_is_asked_for_by_its_name,
    another_name_than_the_connects_is_between_the_two,
    a_browser_that_names_nobody_means_the_connects_site,
    a_host_field_may_leave_out_the_port_of_its_scheme,
    the_systems_roots_count,
];

const NAMES: &[&str] = &["localhost", "app.localhost", "127.0.0.1"];

/// A tunnel whose `sc` finds the system's roots in this file, or where this system has them.
fn tunnel(cloud: &Cloud, roots: Option<&Path>) -> Tunnel {
    let folder = tempfile::tempdir().unwrap();
    let mut sc = cloud.bumping_sc(&folder.path().join("sc.log"));
    sc.arg("--pidfile").arg(folder.path().join("sc.pid"));
    sc.args(["--shards", "1"]);
    sc.env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
    sc.envs(roots.map(|file| ("SSL_CERT_FILE", file)));
    cloud.adopt(Process::start(&mut sc), folder)
}

fn company(cloud: &Cloud) -> (Company, PathBuf) {
    let company = Company::new();
    let file = cloud.state.path().join("company.pem");
    fs::write(&file, &company.root_pem).unwrap();
    (company, file)
}

/// A ClientHello's extensions, by their numbers.
type Extensions = BTreeMap<usize, Vec<u8>>;
const SERVER_NAME: usize = 0;
const PROTOCOLS: usize = 16;
const SESSION: usize = 41;

/// A way to the site that tells what its clients say first.
fn overheard(site: SocketAddr) -> (u16, Receiver<Extensions>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = channel();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let tell = tell.clone();
            // Whoever ends before it has said anything asks for nothing.
            thread::spawn(move || pass(near, site, &tell));
        }
    });
    (port, told)
}

fn pass(mut near: TcpStream, site: SocketAddr, tell: &Sender<Extensions>) -> io::Result<()> {
    let record = record(&mut near)?;
    let mut far = TcpStream::connect(site)?;
    far.write_all(&record)?;
    // The test may have seen all it wants.
    let _ = tell.send(extensions(&record).expect("a ClientHello"));
    join(near, far);
    Ok(())
}

/// One of TLS (RFC 8446 section 5.1).
fn record(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut record = vec![0; 5];
    from.read_exact(&mut record)?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    from.read_exact(&mut record[5..])?;
    Ok(record)
}

/// RFC 8446 section 4.1.2. As they stand there: a server's own reading would not show what must not be there.
fn extensions(record: &[u8]) -> Option<Extensions> {
    // Headers of record and handshake, version and random.
    let mut rest = record.get(5 + 4 + 2 + 32..)?;
    for width in [1, 2, 1] {
        vector(&mut rest, width)?;
    }
    let mut rest = vector(&mut rest, 2)?;
    let mut found = Extensions::new();
    while !rest.is_empty() {
        let number = take(&mut rest, 2)?;
        found.insert(value(number), vector(&mut rest, 2)?.to_vec());
    }
    Some(found)
}

/// What is preceded by its length, a number of so many bytes.
fn vector<'a>(rest: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
    let length = value(take(rest, width)?);
    take(rest, length)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn value(number: &[u8]) -> usize {
    number.iter().fold(0, |n, byte| n << 8 | usize::from(*byte))
}

/// By its name, if it has one (RFC 6066 section 3: no address, no dot at the end), and for HTTP/1.1; in the first handshake
/// and in one that resumes its session.
fn a_site_is_asked_for_by_its_name(driver: Driver) {
    let cloud = Cloud::start(driver);
    let (company, roots) = company(&cloud);
    let tunnel = tunnel(&cloud, Some(&roots));
    let origin = Origin::of(company.site(NAMES, |_| {}));
    let (port, told) = overheard(origin.https);
    let trust = tls::trust_file(&cloud.ca()).unwrap();
    for (host, named) in [
        ("localhost", Some("localhost")),
        ("localhost.", Some("localhost")),
        ("app.localhost", Some("app.localhost")),
        ("127.0.0.1", None),
    ] {
        let site = format!("{host}:{port}");
        let name = host.trim_end_matches('.');
        let socket = connect(tunnel.proxy, &site).unwrap().unwrap();
        let mut client = tls::client(&trust, name, socket).unwrap().of_host(&site);
        for resumes in [false, true] {
            assert_eq!(client.get("/echo-head").unwrap().status(), 200, "{host}");
            let heard = told.recv_timeout(PATIENCE).unwrap();
            assert!(heard.contains_key(&SESSION) || !resumes, "{host}");
            let list = named.map(server_name);
            assert_eq!(heard.get(&SERVER_NAME), list.as_ref(), "{host}, {resumes}");
            assert_eq!(heard[&PROTOCOLS], b"\0\x09\x08http/1.1", "{host}, {resumes}");
            origin.close_connections();
        }
    }
    tunnel.stop();
}

/// As it stands in a ClientHello (RFC 6066 section 3).
fn server_name(name: &str) -> Vec<u8> {
    let length = name.len() as u8;
    [&[0, length + 3, 0, 0, length], name.as_bytes()].concat()
}

/// A ClientHello for another site is passed on, and the site's certificate shown, whether the CONNECT's site is known
/// or not; `sc` says nothing to it, and nothing is learnt.
fn another_name_than_the_connects_is_between_the_two(driver: Driver) {
    let cloud = Cloud::start(driver);
    let (company, roots) = company(&cloud);
    let tunnel = tunnel(&cloud, Some(&roots));
    let trust = tls::trust_file(&cloud.ca()).unwrap();
    // It takes the site's own certificate alone.
    let own = tls::read(&roots).unwrap();
    let own = certificate::client_config_of(&own, rustls::ALL_VERSIONS, &["http/1.1", "own/1"]);
    for (host, name) in [
        ("localhost", "app.localhost"),
        ("localhost", "other.test"),
        ("app.localhost", "localhost"),
        ("127.0.0.1", "localhost"),
    ] {
        let origin = Origin::of(company.site(&[NAMES, &["other.test"]].concat(), |_| {}));
        let (port, told) = overheard(origin.https);
        let site = format!("{host}:{port}");
        let is_passed_on = || {
            let socket = connect(tunnel.proxy, &site).unwrap().unwrap();
            let mut client = tls::client(&own, name, socket).unwrap().of_host(&site);
            assert_eq!(client.get("/echo-head").unwrap().status(), 200, "{site}, {name}");
            let heard = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!(heard[&SERVER_NAME], server_name(name), "{site}");
            assert_eq!(heard[&PROTOCOLS], b"\0\x0f\x08http/1.1\x05own/1", "{site}, {name}");
            assert!(told.try_recv().is_err(), "{site}, {name}: somebody else spoke to it");
        };
        is_passed_on();
        let mut client = tls::client_through(tunnel.proxy, &trust, host, port).unwrap().unwrap();
        assert_eq!(client.get("/echo-head").unwrap().status(), 200, "{site}");
        let heard = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(heard[&PROTOCOLS], b"\0\x09\x08http/1.1", "{site}: sc itself");
        is_passed_on();
    }
    tunnel.stop();
}

/// Without SNI: the leaf is for the name in the CONNECT, and so is what `sc` asks the site for, and how it judges.
fn a_browser_that_names_nobody_means_the_connects_site(driver: Driver) {
    let cloud = Cloud::start(driver);
    let (company, roots) = company(&cloud);
    let tunnel = tunnel(&cloud, Some(&roots));
    let trust = tls::trust_file(&cloud.ca()).unwrap();
    let mut nameless = (*trust).clone();
    nameless.enable_sni = false;
    let nameless = Arc::new(nameless);
    let origin = Origin::of(company.site(NAMES, |_| {}));
    for (host, named) in [
        ("localhost", Some("localhost")),
        ("app.localhost", Some("app.localhost")),
        ("127.0.0.1", None),
        ("x.localhost", Some("x.localhost")),
    ] {
        let (port, told) = overheard(origin.https);
        let shaken = tls::client_through(tunnel.proxy, &nameless, host, port);
        let heard = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(heard.get(&SERVER_NAME), named.map(server_name).as_ref(), "{host}");
        assert_eq!(heard[&PROTOCOLS], b"\0\x09\x08http/1.1", "{host}: sc itself");
        match NAMES.contains(&host) {
            true => {
                let mut client = shaken.unwrap().unwrap();
                let head = client.get("/echo-head").unwrap().text();
                assert!(head.contains(&format!("\r\nHost: {host}:{port}\r\n")), "{head}");
            }
            false => {
                let refused = shaken.map(|_| ()).expect_err("the site's certificate is for others");
                assert!(refused.to_string().contains("not valid for name"), "{refused}");
            }
        }
    }
    tunnel.stop();
}

/// RFC 9110 section 4.2: then the port is the scheme's, and a request in a CONNECT to another one is not for that.
fn a_host_field_may_leave_out_the_port_of_its_scheme(driver: Driver) {
    let module = driver.name();
    if !in_world(&format!("{module}::a_host_field_may_leave_out_the_port_of_its_scheme")) {
        return;
    }
    let cloud = Cloud::start(driver);
    let (company, roots) = company(&cloud);
    let tunnel = tunnel(&cloud, Some(&roots));
    let trust = tls::trust_file(&cloud.ca()).unwrap();
    let origin = Origin::of(company.site(NAMES, |_| {}));
    for port in [80, 443, 8443] {
        origin.serve_at(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    }
    for (scheme, port, accepted) in [
        ("http", 80, &["", ":80"][..]),
        ("http", 443, &[":443"]),
        ("http", 8443, &[":8443"]),
        ("https", 80, &[":80"]),
        ("https", 443, &["", ":443"]),
        ("https", 8443, &[":8443"]),
    ] {
        for named in ["", ":80", ":443", ":8443"] {
            // In either form the site gets what names it as it was written.
            let name = format!("LocalHost{named}");
            let whole = format!("{scheme}://{name}/echo-head");
            for (target, host) in [("/echo-head", &*name), (&whole, "other.test")] {
                let socket = connect(tunnel.proxy, &format!("localhost:{port}")).unwrap().unwrap();
                let mut client = match scheme {
                    "https" => tls::client(&trust, "localhost", socket).unwrap(),
                    _ => Client::over(socket),
                };
                let before = origin.counters().requests;
                let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
                client.send_raw(request.as_bytes()).unwrap();
                let answer = client.read_answer("GET").unwrap();
                let got = (answer.status(), answer.head.field("Culvert-Error"));
                let tried = format!("{scheme}, {port}: {request}");
                match accepted.contains(&named) {
                    true => {
                        assert_eq!(got, (200, None), "{tried}");
                        let reached = format!("GET /echo-head HTTP/1.1\r\nHost: {name}\r\n");
                        assert_eq!(answer.text(), reached, "{tried}");
                    }
                    false => {
                        assert_eq!(got, (421, Some("misdirected")), "{tried}");
                        assert!(answer.head.has("Connection", "close"), "{tried}");
                        assert_eq!(origin.counters().requests, before, "{tried}");
                    }
                }
            }
        }
    }
    tunnel.stop();
}

/// A company's root among them makes its sites good; without it they are as bad as they are for a browser beside `sc`.
fn the_systems_roots_count(driver: Driver) {
    let cloud = Cloud::start(driver);
    let (company, roots) = company(&cloud);
    let origin = Origin::of(company.site(NAMES, |_| {}));
    let trust = tls::trust_file(&cloud.ca()).unwrap();
    for (roots, good) in [(Some(&*roots), true), (None, false)] {
        let tunnel = tunnel(&cloud, roots);
        let open = |trust| {
            let client = tls::client_through(tunnel.proxy, trust, "localhost", origin.https.port());
            client.map(|client| client.expect("CONNECT is answered with 200"))
        };
        match open(&trust) {
            Ok(mut client) => {
                assert!(good, "nobody vouches for it");
                assert_eq!(client.get("/echo-head").unwrap().status(), 200);
            }
            Err(error) => {
                assert!(!good && error.to_string().contains("UnknownIssuer"), "{error}");
                let mut client = open(&certificate::careless()).unwrap();
                assert_eq!(client.get("/echo-head").unwrap().status(), 200);
            }
        }
        tunnel.stop();
    }
}
