//! Which frame of a stream leaves before which.

use bytes::Bytes;
use dataplane::limits::{CONTROL_RESERVE_BYTES, FRAME_HEADER_BYTES, FRAME_TEXT_BYTES_MAX};
use dataplane::mux::frame::Frame;
use dataplane::mux::{Event, Kind, Opened, StreamRef, TlsReport};

use crate::pair::{Host, Pair};

/// An OPENED that says nothing.
const CONNECTED: Opened = Opened {
    family: 0,
    address: [0; 16],
    port: 0,
    dns_us: 0,
    connect_us: 0,
};

/// A `tcp` stream at the endpoint and at `sc`.
fn tcp(p: &mut Pair) -> (StreamRef, StreamRef) {
    let here = p.endpoint.open(p.now, Kind::Tcp);
    p.exchange();
    (here, p.opened_there())
}

/// What of a stream is in these frames, by name.
fn of_stream(frames: &[Frame]) -> Vec<&'static str> {
    let name = |f: &Frame| match f {
        Frame::Opened(..) => Some("OPENED"),
        Frame::StartTls { .. } => Some("START_TLS"),
        Frame::TlsReport(..) => Some("TLS_REPORT"),
        Frame::Data(..) => Some("DATA"),
        Frame::Fin(..) => Some("FIN"),
        Frame::Reset(..) => Some("RESET"),
        _ => None,
    };
    frames.iter().filter_map(name).collect()
}

/// Fills the reserve for frames other than DATA: what left for it.
fn fill_reserve(p: &mut Pair, endpoint: bool) -> Bytes {
    let host = if endpoint {
        // Few enough to be no flood; short ones come last, so that no frame fits what they leave.
        let text = "x".repeat(FRAME_TEXT_BYTES_MAX);
        let long = FRAME_HEADER_BYTES + 5 + text.len();
        for _ in 0..CONTROL_RESERVE_BYTES / long {
            p.endpoint.session.settings_ack(1, true, &text);
        }
        for _ in 0..long / FRAME_HEADER_BYTES {
            p.endpoint.session.settings_ack(1, true, "");
        }
        &mut p.endpoint
    } else {
        p.sc.session
            .send_settings(2, Bytes::from(vec![b' '; 2 * CONTROL_RESERVE_BYTES]));
        &mut p.sc
    };
    host.transmit(p.now).freeze()
}

/// What `sc` saw is told also where the site has ended meanwhile: the endpoint waits for it.
#[test]
fn a_report_behind_the_end_arrives() {
    let mut p = Pair::new();
    p.connect();
    p.settle();
    let (e, s) = tcp(&mut p);
    p.sc.session.opened(s, CONNECTED);
    p.exchange();
    // They cross.
    p.sc.session.finish(p.now, s, None);
    p.endpoint
        .session
        .start_tls(e, Bytes::from_static(b"site"), Bytes::new());
    p.exchange();
    let report = TlsReport {
        verdict: 0x80,
        leaf: [0; 32],
        tlvs: Bytes::new(),
    };
    p.sc.session.tls_report(s, report);
    p.exchange();
    assert!(
        p.endpoint
            .saw(|e| matches!(e, Event::TlsReport(_, report) if report.verdict == 0x80))
    );
    assert!(!p.endpoint.saw(|e| matches!(e, Event::SessionEnded { .. })));
}

#[test]
fn data_waits_for_the_frames_before_it_while_the_reserve_is_full() {
    type Step = fn(&mut Host, StreamRef);
    let opened: Step = |h, r| h.session.opened(r, CONNECTED);
    let start_tls: Step = |h, r| h.session.start_tls(r, Bytes::from_static(b"site"), Bytes::new());
    let report = TlsReport {
        verdict: 0,
        leaf: [0; 32],
        tlvs: Bytes::new(),
    };
    let steps: [(&str, bool); 3] = [("OPENED", false), ("START_TLS", true), ("TLS_REPORT", false)];
    for (n, (name, by_endpoint)) in steps.into_iter().enumerate() {
        let mut p = Pair::new();
        p.connect();
        p.settle();
        let (e, s) = tcp(&mut p);
        for before in &steps[..n] {
            if before.1 {
                start_tls(&mut p.endpoint, e);
            } else {
                opened(&mut p.sc, s);
            }
            p.exchange();
        }
        p.settle();
        let full = fill_reserve(&mut p, by_endpoint);
        let (host, peer, r) = if by_endpoint {
            (&mut p.endpoint, &mut p.sc, e)
        } else {
            (&mut p.sc, &mut p.endpoint, s)
        };
        match n {
            0 => opened(host, r),
            1 => start_tls(host, r),
            _ => host.session.tls_report(r, report.clone()),
        }
        host.write(p.now, r, b"bytes");
        host.session.finish(p.now, r, None);
        assert_eq!(of_stream(&host.frames(p.now)), [""; 0], "before {name}");
        peer.session.handle_bytes(p.now, &mut peer.budget, full);
        let ack = peer.transmit(p.now).freeze();
        host.session.handle_bytes(p.now, &mut host.budget, ack);
        assert_eq!(of_stream(&host.frames(p.now)), [name, "DATA", "FIN"]);
        assert!(!host.saw(|e| matches!(e, Event::SessionEnded { .. })));
    }
}
