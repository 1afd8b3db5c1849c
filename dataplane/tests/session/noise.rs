//! Frames and commands in any order.

use std::time::Duration;

use bytes::Bytes;
use dataplane::mux::frame::Frame;
use dataplane::mux::{Code, Event, GoAwayReason, Kind, Open, Recv, StreamRef};
use dataplane::time::Time;

use crate::pair::{Host, Pair};

/// A small generator (xorshift), so that a failure names its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn offset(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(200),
            1 => self.below(40_000),
            2 => self.below(1 << 20),
            _ => u64::MAX - self.below(2),
        }
    }

    /// Frames that keep the rules more often than not, else the session would end before anything is reached. `opened`
    /// counts streams: of the host, then of its peer.
    fn frame(&mut self, own: u64, opened: &mut [u64; 2]) -> Frame {
        let side = self.below(2);
        let reach = if self.below(200) == 0 {
            40
        } else {
            opened[side as usize].max(1)
        };
        let first = if side == 0 { own } else { 3 - own };
        let id = first + 2 * self.below(reach);
        let text = Bytes::new();
        let kind = if opened[side as usize] == 0 && reach == 1 {
            self.below(4)
        } else {
            self.below(40)
        };
        match kind {
            0..=3 => {
                opened[1] += 1;
                Frame::Open(
                    3 - own + 2 * (opened[1] - 1),
                    Open {
                        kind: if own == 2 { Kind::Relay } else { Kind::Probe },
                        settings: 1,
                        credit: self.below(1 << 17) as u32,
                        port: 0,
                        host: Bytes::new(),
                        shown: None,
                    },
                )
            }
            4..=17 => Frame::Data(id, vec![7; 1 + self.below(3_000) as usize].into()),
            18 => Frame::Fin(id, None),
            19..=20 => Frame::Reset(id, Code::Cancelled, text),
            21..=28 => Frame::Credit(id, self.offset()),
            29 if self.below(20) == 0 => Frame::Ack(self.offset()),
            30..=32 => Frame::Ping([0; 8]),
            33 => Frame::Pong(self.below(9).to_be_bytes()),
            34..=36 => Frame::Recall(id, self.offset()),
            37 if self.below(40) == 0 => Frame::Return(id, self.offset()),
            38 if self.below(40) == 0 => Frame::GoAway {
                last: self.offset(),
                reason: GoAwayReason::Drain,
                text,
            },
            _ => Frame::Extension,
        }
    }
}

/// What a holder may do to a stream, whatever its state.
fn handle(host: &mut Host, now: Time, dice: &mut Dice, r: StreamRef) {
    let (session, budget) = (&mut host.session, &mut host.budget);
    match dice.below(10) {
        0..=2 => drop(host.write(now, r, &[1; 5_000])),
        3 => session.finish(now, r, None),
        4 => session.reset(now, budget, r, Code::SiteReset, "no more"),
        5 => session.release(now, budget, r),
        6 => session.rewind(r),
        _ => {
            if let Recv::Data(bytes) = session.recv(budget, r) {
                session.consumed(now, budget, r, dice.below(1 + bytes.len() as u64) as usize);
            }
        }
    }
}

#[test]
fn no_frames_of_a_peer_break_the_process_or_the_budgets() {
    for seed in 1..=3_000 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut p = Pair::new();
        p.connect();
        p.settle();
        let client = seed % 2 == 0;
        let (mut refs, mut opened) = (Vec::new(), [0, 0]);
        for _ in 0..80 {
            let now = p.now;
            let host = if client { &mut p.sc } else { &mut p.endpoint };
            match dice.below(12) {
                0 => p.now = p.now + Duration::from_millis(dice.below(900)),
                1 => host.session.handle_timeout(now, &mut host.budget),
                2 => drop(host.transmit(now)),
                3 => {
                    let open = Open {
                        kind: if client { Kind::Relay } else { Kind::Probe },
                        settings: 1,
                        credit: 0,
                        port: 0,
                        host: Bytes::new(),
                        shown: None,
                    };
                    if let Ok(r) = host.session.open(now, &mut host.budget, open) {
                        refs.push(r);
                        host.transmit(now);
                        opened[0] += 1;
                    }
                }
                4..=6 if !refs.is_empty() => {
                    let r = refs[dice.below(refs.len() as u64) as usize];
                    handle(host, now, &mut dice, r);
                }
                _ => host.feed(now, &dice.frame(if client { 1 } else { 2 }, &mut opened)),
            }
            let host = if client { &mut p.sc } else { &mut p.endpoint };
            host.saw(|_| false);
            for event in host.events.drain(..) {
                if let Event::Opened(r, _) = event {
                    refs.push(r);
                }
            }
            let budget = &host.budget;
            assert!(budget.rx_outstanding() <= budget.rx_outstanding_max(), "seed {seed}");
            assert!(budget.tx_held() <= budget.tx_held_max(), "seed {seed}");
        }
        let host = if client { &mut p.sc } else { &mut p.endpoint };
        host.session.disconnected(p.now, &mut host.budget, false);
        let end = p.now + Duration::from_secs(60);
        host.session.handle_timeout(end, &mut host.budget);
        for r in refs {
            host.session.release(end, &mut host.budget, r);
        }
        let b = &host.budget;
        let left = (
            b.tx_held(),
            b.rx_outstanding(),
            b.rx_held(),
            b.rx_charged(),
            b.streams(),
        );
        assert_eq!(left, (0, 0, 0, 0, (0, 0)), "seed {seed}");
    }
}
