use std::time::Duration;

use super::clients::{self, Form, Load, Mark, Outcome};
use super::delay::Delay;
use super::distance::{Client, ROUND_TRIP, median};
use super::origin;

fn load(body_bytes: u64, fresh: bool) -> (Outcome, Vec<Mark>) {
    let origin = origin::start(None).unwrap();
    let load = Load {
        target: origin,
        form: Form::Origin,
        origin,
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
