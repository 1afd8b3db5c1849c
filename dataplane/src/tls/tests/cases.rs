//! Single records of every odd kind: what we make of them, and what rustls makes of the same bytes.

use rustls::AlertDescription as Alert;

use super::*;
use crate::limits::{EMPTY_RECORDS_MAX, RECORD_BYTES_MAX, RECORD_CIPHERTEXT_BYTES_MAX};

const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
const ALERT: u8 = 21;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This many bytes of data; 0 for a record that brings nothing.
    Data(usize),
    KeyUpdate,
    Closed,
    /// Ends the connection, with this alert to the peer.
    Refused(Option<Alert>),
}

pub(super) struct Case {
    pub(super) name: &'static str,
    /// Plaintext of one record with type and padding.
    pub(super) inner: Vec<u8>,
    pub(super) ours: Verdict,
    /// Whether rustls goes on after it; `None` where it depends on the role or is looser on purpose.
    pub(super) rustls: Option<bool>,
    /// Whether an OpenSSL server goes on after it.
    pub(super) openssl: Option<bool>,
}

fn case(name: &'static str, inner: Vec<u8>, ours: Verdict) -> Case {
    let goes_on = !matches!(ours, Verdict::Refused(_));
    Case {
        name,
        inner,
        ours,
        rustls: Some(goes_on),
        openssl: Some(goes_on),
    }
}

fn inner(content: &[u8], kind: u8, padding: usize) -> Vec<u8> {
    [content, &[kind], &vec![0; padding]].concat()
}

fn ticket() -> Vec<u8> {
    let body = [
        &[0, 0, 0x1c, 0x20][..],
        &[1, 2, 3, 4],
        &[1, 0],
        &[0, 4, 9, 9, 9, 9],
        &[0, 0],
    ]
    .concat();
    [&[4, 0, 0, body.len() as u8], &body[..]].concat()
}

pub(super) fn cases() -> Vec<Case> {
    [lengths(), messages(), alerts()].into_iter().flatten().collect()
}

fn lengths() -> Vec<Case> {
    let overflow = Verdict::Refused(Some(Alert::RecordOverflow));
    let unexpected = Verdict::Refused(Some(Alert::UnexpectedMessage));
    let full = RECORD_BYTES_MAX;
    let longest = RECORD_CIPHERTEXT_BYTES_MAX - 16;
    vec![
        case("one byte", inner(b"x", DATA, 0), Verdict::Data(1)),
        case("full", inner(&pattern(full, 0), DATA, 0), Verdict::Data(full)),
        case("one too long", inner(&pattern(full + 1, 0), DATA, 0), overflow),
        case("padded to full", inner(b"x", DATA, full - 1), Verdict::Data(1)),
        Case {
            // OpenSSL counts only what is left without the padding.
            openssl: None,
            ..case("padded beyond full", inner(b"x", DATA, full), overflow)
        },
        Case {
            openssl: None,
            ..case("16,384 + 256", inner(b"x", DATA, longest - 2), overflow)
        },
        case("16,384 + 257", inner(b"x", DATA, longest - 1), overflow),
        case("empty", inner(b"", DATA, 0), Verdict::Data(0)),
        case("padding only", inner(b"", DATA, 500), Verdict::Data(0)),
        case("no type", vec![0; 1], unexpected),
        case("no type, long", vec![0; full], unexpected),
    ]
}

fn messages() -> Vec<Case> {
    let unexpected = Verdict::Refused(Some(Alert::UnexpectedMessage));
    let illegal = Verdict::Refused(Some(Alert::IllegalParameter));
    let handshake = |content: &[u8]| inner(content, HANDSHAKE, 0);
    let looser = |case: Case| Case {
        rustls: None,
        openssl: None,
        ..case
    };
    vec![
        case("KeyUpdate", handshake(&[24, 0, 0, 1, 0]), Verdict::KeyUpdate),
        case("KeyUpdate asked back", handshake(&[24, 0, 0, 1, 1]), Verdict::KeyUpdate),
        case(
            "KeyUpdate padded",
            inner(&[24, 0, 0, 1, 0], HANDSHAKE, 90),
            Verdict::KeyUpdate,
        ),
        case("KeyUpdate unknown request", handshake(&[24, 0, 0, 1, 2]), illegal),
        case("KeyUpdate too long", handshake(&[24, 0, 0, 2, 0, 0]), unexpected),
        case(
            "KeyUpdate twice",
            handshake(&[24, 0, 0, 1, 0, 24, 0, 0, 1, 0]),
            unexpected,
        ),
        case("KeyUpdate and more", handshake(&[24, 0, 0, 1, 0, 4]), unexpected),
        looser(case("KeyUpdate begun", handshake(&[24, 0, 0]), unexpected)),
        looser(case("ticket", handshake(&ticket()), unexpected)),
        looser(case("no handshake message", handshake(&[]), unexpected)),
        case("Finished", handshake(&[20, 0, 0, 0]), unexpected),
        looser(case("ClientHello begun", handshake(&[1, 0, 1, 0, 3, 3]), unexpected)),
        case("EndOfEarlyData", handshake(&[5, 0, 0, 0]), unexpected),
        case("message_hash", handshake(&[254, 0, 0, 0]), unexpected),
        case("change_cipher_spec", inner(&[1], 20, 0), unexpected),
        case("heartbeat", inner(&[1, 0, 0], 24, 0), unexpected),
        case("type 255", inner(b"x", 255, 0), unexpected),
        case("type 1", inner(b"x", 1, 0), unexpected),
    ]
}

fn alerts() -> Vec<Case> {
    let decode = Verdict::Refused(Some(Alert::DecodeError));
    let gave_up = Verdict::Refused(None);
    let alert = |content: &[u8]| inner(content, ALERT, 0);
    vec![
        case("close_notify", alert(&[1, 0]), Verdict::Closed),
        case("fatal close_notify", alert(&[2, 0]), Verdict::Closed),
        case("bad_record_mac", alert(&[2, 20]), gave_up),
        case("internal_error", alert(&[2, 80]), gave_up),
        case("unknown alert", alert(&[2, 200]), gave_up),
        Case {
            // A peer that gives up is a cut to us, however politely it says so.
            rustls: None,
            openssl: None,
            ..case("user_canceled", alert(&[1, 90]), gave_up)
        },
        case("half an alert", alert(&[2]), decode),
        case("no alert", alert(&[]), decode),
        case("two alerts", alert(&[1, 0, 1, 0]), decode),
    ]
}

#[test]
fn odd_records_meet_their_verdict() {
    for case in cases() {
        for role in ROLES {
            let (client, server) = own_pair();
            let (mut from, mut to) = match role {
                Role::Client => (client, server),
                Role::Server => (server, client),
            };
            let wire = from.seal_raw(&case.inner);
            check(&case, to.open(second(0), &wire), &to);
            if case.ours == Verdict::KeyUpdate {
                from.sealer.change_key().unwrap();
            }
            if matches!(case.ours, Verdict::Data(_) | Verdict::KeyUpdate) {
                let wire = from.seal(&[pattern(9, 9)]);
                assert_eq!(to.open_data(second(0), &wire), pattern(9, 9), "{}", case.name);
            }
        }
    }
}

fn check(case: &Case, result: Result<Vec<Record>, Error>, to: &Half) {
    let name = case.name;
    let Ok(records) = result else {
        assert_eq!(case.ours, Verdict::Refused(to.opener.alert()), "{name}");
        return;
    };
    match (case.ours, &records[..]) {
        (Verdict::Data(0), []) => {}
        (Verdict::Data(length), [Record::Data(data)]) => assert_eq!(data.len(), length, "{name}"),
        (Verdict::KeyUpdate, [Record::KeyUpdate { .. }]) | (Verdict::Closed, [Record::Closed]) => {}
        (verdict, records) => panic!("{name}: {verdict:?}, but {records:?}"),
    }
}

/// The same bytes to rustls: where it is not looser on purpose, it agrees.
#[test]
fn rustls_agrees_on_odd_records() {
    for case in cases() {
        for role in ROLES {
            let (mut own, mut oracle) = with_oracle(role);
            let result = oracle.read(&own.seal_raw(&case.inner));
            let Some(goes_on) = case.rustls else {
                continue;
            };
            assert_eq!(result.is_ok(), goes_on, "{}: {result:?}", case.name);
        }
    }
}

#[test]
fn only_a_flood_of_empty_records_is_refused() {
    let (mut client, mut server) = own_pair();
    for _ in 0..3 {
        for _ in 0..EMPTY_RECORDS_MAX {
            let wire = client.seal_raw(&[DATA]);
            assert_eq!(server.open(second(0), &wire).unwrap(), []);
        }
        let wire = client.seal(&[pattern(4, 0)]);
        assert_eq!(server.open_data(second(0), &wire), pattern(4, 0));
    }
    let flood: Vec<u8> = (0..=EMPTY_RECORDS_MAX).flat_map(|_| client.seal_raw(&[DATA])).collect();
    assert!(server.open(second(0), &flood).is_err());
}

/// Records that nobody encrypted, and headers that lie.
#[test]
fn unprotected_and_oversized_records_are_refused() {
    let overflow = Alert::RecordOverflow;
    let wires: [(&str, &[u8], Alert); 7] = [
        ("plain alert", &[21, 3, 3, 0, 2, 1, 0], Alert::UnexpectedMessage),
        ("change_cipher_spec", &[20, 3, 3, 0, 1, 1], Alert::UnexpectedMessage),
        (
            "plain KeyUpdate",
            &[22, 3, 3, 0, 5, 24, 0, 0, 1, 0],
            Alert::UnexpectedMessage,
        ),
        ("header beyond the cap", &[23, 3, 3, 0x41, 0x01], overflow),
        ("longest header", &[23, 3, 3, 0xff, 0xff], overflow),
        ("no room for the tag", &[23, 3, 3, 0, 1, 0], Alert::BadRecordMac),
        ("no ciphertext", &[23, 3, 3, 0, 0], Alert::BadRecordMac),
    ];
    for (name, wire, alert) in wires {
        let (_, mut server) = own_pair();
        assert!(server.open(second(0), wire).is_err(), "{name}");
        assert_eq!(server.opener.alert(), Some(alert), "{name}");
    }
    // At the cap a record is waited for.
    let (_, mut server) = own_pair();
    assert_eq!(server.open(second(0), &[23, 3, 3, 0x41, 0x00]).unwrap(), []);
}

#[test]
fn rustls_sends_tickets_and_we_refuse_them() {
    let (client, server) = configs();
    let mut server = Arc::unwrap_or_clone(server);
    server.send_tls13_tickets = 2;
    server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    let (mut own, _) = with_oracle_configured(Role::Client, client, Arc::new(server));
    let error = own.open(second(0), &[]).unwrap_err();
    assert!(error.to_string().contains("other than KeyUpdate"), "{error}");
    assert_eq!(own.opener.alert(), Some(Alert::UnexpectedMessage));
}

/// The alert that the opener names reaches the peer.
#[test]
fn our_alert_tells_rustls_why() {
    for role in ROLES {
        let (mut own, mut oracle) = with_oracle(role);
        let mut wire = oracle.write(b"data");
        wire[9] ^= 1;
        own.open(second(0), &wire).unwrap_err();
        let mut out = Vec::new();
        let alert = own.opener.alert().unwrap();
        own.sealer.alert(alert, &mut out).unwrap();
        let error = oracle.read(&out).unwrap_err();
        assert_eq!(error, rustls::Error::AlertReceived(Alert::BadRecordMac));
    }
}
