//! KeyUpdate in both directions, and the interval between two.

use super::*;
use crate::limits::{KEY_UPDATE_INTERVAL_MIN, RECORD_BYTES_MAX, RECORDS_PER_KEY_MAX};

const KEY_UPDATE_REQUESTED: [u8; 6] = [24, 0, 0, 1, 1, 22];

#[test]
fn key_updates_of_rustls_are_followed_and_answered() {
    for role in ROLES {
        let (mut own, mut oracle) = with_oracle(role);
        for round in 0..5 {
            // rustls asks for one in return.
            oracle.connection.refresh_traffic_keys().unwrap();
            let mut records = own.open(second(round), &oracle.output()).unwrap();
            let last = records.pop();
            assert_eq!(last, Some(Record::KeyUpdate { respond: true }), "{role:?}");
            let mut out = Vec::new();
            own.sealer.key_update(&mut out).unwrap();
            out.extend(own.seal(&[pattern(100, round as u8)]));
            oracle.received.clear();
            oracle.read(&out).unwrap();
            assert_eq!(oracle.received, pattern(100, round as u8));
            let wire = oracle.write(b"under the new key");
            assert_eq!(own.open_data(second(round), &wire), b"under the new key");
        }
    }
}

#[test]
fn our_key_updates_are_followed_by_rustls_and_ask_for_nothing() {
    for role in ROLES {
        let (mut own, mut oracle) = with_oracle(role);
        for round in 0..40 {
            let mut out = own.seal(&[pattern(10, round)]);
            own.sealer.key_update(&mut out).unwrap();
            out.extend(own.seal(&[pattern(10, !round)]));
            oracle.received.clear();
            oracle.read(&out).unwrap();
            assert_eq!(oracle.received, [pattern(10, round), pattern(10, !round)].concat());
        }
        assert_eq!(oracle.output(), [0; 0], "nothing was asked for");
    }
}

#[test]
fn both_directions_change_their_keys_independently() {
    let (mut client, mut server) = own_pair();
    for round in 0..10 {
        let mut to_server = Vec::new();
        client.sealer.key_update(&mut to_server).unwrap();
        to_server.extend(client.seal(&[pattern(50, 1)]));
        // Crossing updates, and twice as many from the server.
        for half in 0..2 {
            let mut to_client = Vec::new();
            server.sealer.key_update(&mut to_client).unwrap();
            to_client.extend(server.seal(&[pattern(60, half)]));
            let now = second(2 * round + u64::from(half));
            assert_eq!(client.open_data(now, &to_client), pattern(60, half));
        }
        assert_eq!(server.open_data(second(round), &to_server), pattern(50, 1));
    }
}

#[test]
fn a_second_key_update_within_a_second_is_refused() {
    for (delay_us, allowed) in [(999_999, false), (1_000_000, true)] {
        assert_eq!(KEY_UPDATE_INTERVAL_MIN.as_micros(), 1_000_000);
        let (mut client, mut server) = own_pair();
        let mut wire = Vec::new();
        client.sealer.key_update(&mut wire).unwrap();
        server.open(Time::from_micros(5), &wire).unwrap();
        wire.clear();
        client.sealer.key_update(&mut wire).unwrap();
        let result = server.open(Time::from_micros(5 + delay_us), &wire);
        assert_eq!(result.is_ok(), allowed, "{delay_us}");
    }
}

#[test]
fn a_request_for_a_key_update_is_reported() {
    let (mut client, mut server) = own_pair();
    let wire = client.seal_raw(&KEY_UPDATE_REQUESTED);
    let records = server.open(second(0), &wire).unwrap();
    assert_eq!(records, [Record::KeyUpdate { respond: true }]);
    client.sealer.change_key().unwrap();
    let wire = client.seal(&[pattern(5, 0)]);
    assert_eq!(server.open_data(second(0), &wire), pattern(5, 0));
}

/// The last record under a key is the KeyUpdate: 99 of data and it, then 99 again.
#[test]
fn a_key_serves_exactly_the_records_that_it_may() {
    let (mut client, mut server) = own_pair();
    client.sealer.rekey_after(100);
    let mut kinds = Vec::new();
    for n in 0..300 {
        let wire = client.seal(&[pattern(20, 0)]);
        kinds.extend(server.open(second(n), &wire).unwrap());
    }
    let update = |record: &Record| matches!(record, Record::KeyUpdate { respond: false });
    let places: Vec<_> = (0..kinds.len()).filter(|&i| update(&kinds[i])).collect();
    assert_eq!(places, [99, 199, 299]);
}

#[test]
fn the_interval_can_only_be_shortened() {
    const { assert!(RECORDS_PER_KEY_MAX == 8_388_608) };
    let (mut client, mut server) = own_pair();
    // Two is the least: a record of data and the KeyUpdate.
    client.sealer.rekey_after(0);
    for n in 0..10 {
        let wire = client.seal(&[pattern(20, n)]);
        assert_eq!(server.open_data(second(n.into()), &wire), pattern(20, n));
    }
}

/// Bulk with a new key each 100 records. `CULVERT_REKEY_MIB=1024` is the long form.
#[test]
fn bulk_survives_a_new_key_each_hundred_records() {
    let mib = std::env::var("CULVERT_REKEY_MIB").map_or(64, |text| text.parse().unwrap());
    let records = mib * (1 << 20) / RECORD_BYTES_MAX as u64;
    for role in ROLES {
        let (mut own, mut oracle) = with_oracle(role);
        own.sealer.rekey_after(100);
        let mut wire = Vec::new();
        let mut answer = Vec::new();
        for n in 0..records / 4 {
            let frame = pattern(RECORD_BYTES_MAX, n as u8);
            wire.clear();
            own.sealer.seal(std::slice::from_ref(&frame), &mut wire).unwrap();
            oracle.received.clear();
            oracle.read(&wire).unwrap();
            assert!(oracle.received == frame, "record {n} to rustls");
            if n % 100 == 99 {
                oracle.connection.refresh_traffic_keys().unwrap();
            }
            answer.clear();
            answer.extend(oracle.write(&frame));
            let data = own.open_data(second(n), &answer);
            assert!(data == frame, "record {n} from rustls");
        }
    }
}
