use std::io::ErrorKind;

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

#[test]
fn impaired_ways_are_slow_and_exact() {
    let origin = Origin::start();
    let relay = relay_to(origin.http);
    let took = |length| {
        let since = Instant::now();
        let mut client = Client::dial(relay.address).unwrap();
        client.download("", 1, length, "").unwrap();
        since.elapsed()
    };
    let impairment = Impairment {
        delay: Duration::from_millis(60),
        ..Impairment::default()
    };
    for direction in Direction::BOTH {
        relay.impair(Which::All, direction, impairment);
    }
    assert!(took(10) >= Duration::from_millis(120));
    let impairment = Impairment {
        bytes_per_second: Some(1_000_000),
        piece_max: 3,
        ..Impairment::default()
    };
    relay.impair(Which::All, Direction::ToCloud, Impairment::default());
    relay.impair(Which::All, Direction::ToClient, impairment);
    assert!(took(200_000) >= Duration::from_millis(190));
}

#[test]
fn one_way_may_be_dead() {
    let origin = Origin::start();
    let relay = relay_to(origin.http);
    let mut client = Client::dial(relay.address).unwrap();
    client.download("", 1, 10, "").unwrap();
    assert_eq!(relay.stall(Which::All, Direction::ToClient), 1);
    client.send("GET", "/bytes?seed=1&length=10", &[], &[]).unwrap();
    origin.wait("the request", |c| c.requests == 2);
    // Others pass.
    Client::dial(relay.address).unwrap().download("", 1, 10, "").unwrap();
    assert!(relay.cut(Which::All, Cut::Reset) >= 1);
    assert_eq!(client.read_head().unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn strikes_hit_their_byte() {
    let origin = Origin::start();
    let relay = relay_to(origin.http);
    let strike = |direction, at, how| relay.strike(Which::All, [Strike { direction, at, how }]);
    let get = || {
        let mut client = Client::dial(relay.address).unwrap();
        client.send("GET", "/bytes?seed=1&length=100000", &[], &[]).unwrap();
        client.read_answer("GET").map(|answer| answer.body)
    };
    let whole = crate::body::bytes(1, 100_000);
    strike(Direction::ToClient, 50_000, Blow::Reset);
    assert_eq!(get().unwrap_err().kind(), ErrorKind::ConnectionReset);
    strike(Direction::ToClient, 50_000, Blow::Fin);
    assert_eq!(get().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    strike(Direction::ToClient, 50_000, Blow::Flip);
    let came = get().unwrap();
    assert_eq!(came.iter().zip(&whole).filter(|(a, b)| a != b).count(), 1);
    strike(Direction::ToCloud, 5, Blow::Reset);
    assert!(get().is_err());
    assert_eq!(get().unwrap(), whole);
    assert_eq!(
        (relay.stats().struck, relay.strikes_left(), origin.counters().requests),
        (4, 0, 4)
    );
}
