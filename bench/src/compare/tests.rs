use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::clients::{self, Form, Load, Mark, Outcome};
use super::delay::Delay;
use super::distance::{Client, ROUND_TRIP, median};
use super::halves::Halves;
use super::hosts::Hosts;
use super::near::{Contender, InMemory, Sample, Scenario, Used};
use super::stalled::Round;
use super::systems::Kind;
use super::{Results, Row, bare, bump, certificates, origin, report};

fn load(body_bytes: u64, fresh: bool) -> (Outcome, Vec<Mark>) {
    let origin = origin::start(None).unwrap();
    let load = Load {
        target: origin,
        form: Form::Origin,
        origin,
        hosts: None,
        body_bytes,
        connections: 10,
        fresh,
        warm_up: Duration::from_millis(50),
        duration: Duration::from_millis(300),
    };
    let mut marks = Vec::new();
    let outcome = clients::run(&load, |mark| marks.push(mark)).unwrap();
    (outcome, marks)
}

#[test]
fn clients_count_what_the_site_answers() {
    for fresh in [false, true] {
        let (outcome, marks) = load(1_024, fresh);
        assert!(outcome.requests > 10, "{}", outcome.requests);
        assert_eq!((outcome.failures, outcome.bytes), (0, outcome.requests * 1_024));
        assert_eq!(outcome.latency.len(), outcome.requests);
        assert_eq!(marks, [Mark::Start, Mark::End]);
    }
}

#[test]
fn bodies_longer_than_a_turn_are_counted_as_they_come() {
    let (outcome, _) = load(50 << 20, false);
    assert!(outcome.bytes > 10 << 20, "{}", outcome.bytes);
    assert_eq!(outcome.failures, 0);
}

#[test]
fn what_is_refused_is_no_measurement() {
    // Bound, and nobody listens.
    let nobody = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    nobody
        .bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    let target = nobody.local_addr().unwrap().as_socket().unwrap();
    let load = Load {
        target,
        form: Form::Origin,
        origin: target,
        hosts: None,
        body_bytes: 1,
        connections: 1,
        fresh: true,
        warm_up: Duration::ZERO,
        duration: Duration::from_secs(60),
    };
    assert!(clients::run(&load, |_| {}).is_err());
}

#[test]
fn a_long_line_keeps_every_byte_and_no_haste() {
    const BYTES: u64 = 3_000_001;
    let origin = origin::start(None).unwrap();
    let line = Delay::start(ROUND_TRIP).unwrap();
    line.lead_to(origin);
    let client = Client {
        target: line.address,
        origin,
    };
    let body = client.transfer(Form::Origin, BYTES).unwrap();
    assert_eq!(body.total(), BYTES);
    let new = client.new_connections(Form::Origin, 3).unwrap();
    // One for the handshake, one for request and answer.
    assert!(new.first_byte.iter().all(|trips| *trips >= 2.0), "{:?}", new.first_byte);
}

#[test]
fn medians() {
    assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    assert!(median(&[]).is_nan());
}

#[test]
fn every_connection_of_all_rounds_is_to_another_host() {
    let proxy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = proxy.local_addr().unwrap();
    let named = thread::spawn(move || {
        let mut named = Vec::new();
        // The one that says nothing is the last.
        while let Some(Ok(line)) = BufReader::new(proxy.accept().unwrap().0).lines().next() {
            named.push(line);
        }
        named
    });
    let hosts = Hosts::new();
    for _round in 0..2 {
        let load = Load {
            target,
            form: Form::Secure,
            origin: target,
            hosts: Some(&hosts),
            body_bytes: 1,
            connections: 3,
            fresh: true,
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(50),
        };
        // Each is hung up on, and the next one dialled.
        let outcome = clients::run(&load, |_| {}).unwrap();
        assert_eq!(outcome.requests, 0);
    }
    drop(TcpStream::connect(target).unwrap());
    let named = named.join().unwrap();
    assert!(named.len() > 6, "{named:?}");
    assert!(named[0].starts_with("CONNECT 127.16.0.1:"), "{}", named[0]);
    let different: HashSet<&String> = named.iter().collect();
    assert_eq!(different.len(), named.len());
}

/// As a client that verifies sees it: what it asks for, on a connection to `address`.
fn ask(site: SocketAddr, root: &str, address: Ipv4Addr, name: Ipv4Addr) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::IpAddress(std::net::IpAddr::from(name).into());
    let tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(tls, TcpStream::connect((address, site.port()))?);
    stream.write_all(b"GET /5 HTTP/1.1\r\nHost: site\r\n\r\n")?;
    let mut text = String::new();
    while !text.ends_with("\r\n\r\nxxxxx") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        text.push(byte[0].into());
    }
    Ok(text)
}

#[test]
fn the_site_is_right_on_each_address_of_loopback() {
    let site = certificates::Site::new();
    let root = site.root().to_owned();
    let origin = origin::start(Some(site)).unwrap();
    let (one, other) = (Ipv4Addr::new(127, 16, 0, 1), Ipv4Addr::new(127, 200, 3, 4));
    for address in [Ipv4Addr::LOCALHOST, one, other, one] {
        let answer = ask(origin, &root, address, address).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
    let wrong = ask(origin, &root, one, other).unwrap_err().to_string();
    assert!(wrong.contains("not valid for name"), "{wrong}");
}

#[test]
fn both_halves_of_a_bare_handshake_cost_something() {
    let bare = bare::measure().unwrap();
    // It verifies two signatures, where the server makes one.
    assert!(!bare.server.is_zero() && bare.client > bare.server, "{bare:?}");
}

#[test]
fn bump_in_memory_costs_our_ends_a_handshake_each() {
    let (bare, bump) = (bare::measure().unwrap(), bump::measure().unwrap());
    // The same work is in it, and a leaf's signature; the machine is not as fast at all times.
    assert!(
        2 * bump.client > bare.client && 3 * bump.server > 2 * bare.server,
        "{bump:?} {bare:?}"
    );
}

#[test]
fn a_new_host_is_held_against_the_bare_handshake_of_its_own_round() {
    let sample = |sc: f64, endpoint: f64, in_memory: Option<InMemory>| Sample {
        requests: 1_000,
        failures: 0,
        bytes: 1_024_000,
        seconds: 1.0,
        latency: [1.0; 3],
        parts: [("sc", sc), ("endpoint", endpoint), ("sc-cloud", 9.0)]
            .map(|(name, cpu)| Used {
                name,
                cpu,
                memory: None,
                descriptors: None,
            })
            .into(),
        own_cpu: 0.0,
        other_cpu: 0.0,
        in_memory,
    };
    let halves = |client, server| Halves {
        client: Duration::from_micros(client),
        server: Duration::from_micros(server),
    };
    let measured = |client, server| {
        Some(InMemory {
            bare: halves(client, server),
            bump: halves(client + client / 10, server + server / 2),
        })
    };
    let results = Results {
        rows: vec![Row {
            scenario: Scenario::Hosts,
            contender: Contender::of(Kind::Culvert, Scenario::Hosts)[0],
            samples: vec![
                sample(0.3, 0.2, measured(200, 50)),
                // A slower machine, the same programs.
                sample(0.6, 0.4, measured(400, 100)),
                sample(0.3, 0.2, measured(200, 50)),
            ],
        }],
        ..Results::default()
    };
    let (text, json) = report::write(&results, &[String::new(), String::new()]);
    let reached: Vec<(f64, bool)> = json["goals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|goal| {
            (
                goal["reached"]["median"].as_f64().unwrap(),
                goal["met"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        reached,
        [(1.1, true), (1.5, true), (2.0, false), (1.5, true), (4.0, false)]
    );
    assert!(text.contains("client half 200.0 (200.0–400.0) µs of CPU"), "{text}");
    // Memory and descriptors, which these parts keep from us.
    assert!(text.contains("| – | – |") && !text.contains("NaN"), "{text}");
}

#[test]
fn others_beside_stalled_streams_are_held_against_those_of_their_own_round() {
    let round = |alone, beside| Round {
        alone,
        beside,
        seconds: 60.0,
        memory: None,
    };
    for (last, reached) in [(4.4, (1.1, true)), (4.8, (1.2, false))] {
        let results = Results {
            stalled: vec![round(8.0, 8.0), round(2.0, 3.0), round(4.0, last)],
            ..Results::default()
        };
        let (text, json) = report::write(&results, &[String::new(), String::new()]);
        let goal = &json["goals"][0];
        let shown = (
            goal["reached"]["median"].as_f64().unwrap(),
            goal["met"].as_bool().unwrap(),
        );
        assert!((shown.0 - reached.0).abs() < 1e-9 && shown.1 == reached.1, "{goal}");
        // Memory that these processes keep from us.
        assert!(text.contains("| – |") && !text.contains("NaN"), "{text}");
    }
}
