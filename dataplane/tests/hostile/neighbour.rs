//! The honest link beside: it shares the shard's budgets and must not notice anything.

use std::time::Duration;

use bytes::BytesMut;
use dataplane::limits::FRAME_HEADER_BYTES;
use dataplane::mux::{Budget, Event, Opened, Recv, Session, Side, StreamRef};
use dataplane::time::Time;

use super::shard::{budget, dial, open_from, other, session, transmit};

const BYTES: usize = 1_000;

pub struct Neighbour {
    session: Session,
    friend: Session,
    friend_budget: Budget,
    /// One stream, at either end.
    near: StreamRef,
    far: StreamRef,
}

impl Neighbour {
    /// Up, with one stream that has carried data.
    pub fn new(side: Side, now: Time, shard: &mut Budget) -> Self {
        let mut friend_budget = budget();
        let mut here = session(side, 1, now);
        let mut friend = session(other(side), 1, now);
        let (sc, sc_budget, endpoint, endpoint_budget) = match side {
            Side::Client => (&mut here, &mut *shard, &mut friend, &mut friend_budget),
            Side::Endpoint => (&mut friend, &mut friend_budget, &mut here, &mut *shard),
        };
        let hello = dial(sc, now, sc_budget);
        endpoint.connected_by(now, endpoint_budget, &hello);
        talk(now, &mut here, shard, &mut friend, &mut friend_budget);
        let open = open_from(other(side));
        let far = friend.open(now, &mut friend_budget, open).expect("live");
        let events = talk(now, &mut here, shard, &mut friend, &mut friend_budget);
        let opened = events.iter().find_map(|e| match e {
            Event::Opened(r, _) => Some(*r),
            _ => None,
        });
        let near = opened.expect("opened");
        if side == Side::Client {
            here.opened(near, Opened::default());
        }
        let mut neighbour = Self {
            session: here,
            friend,
            friend_budget,
            near,
            far,
        };
        neighbour.carries(now, shard);
        neighbour
    }

    fn talk(&mut self, now: Time, shard: &mut Budget) -> Vec<Event> {
        talk(now, &mut self.session, shard, &mut self.friend, &mut self.friend_budget)
    }

    /// A thousand bytes cross the stream in both directions, and nothing happens to the session.
    pub fn carries(&mut self, now: Time, shard: &mut Budget) {
        write(&mut self.friend, now, &mut self.friend_budget, self.far);
        write(&mut self.session, now, shard, self.near);
        let events = self.talk(now, shard);
        let there = read(&mut self.session, now, shard, self.near);
        let back = read(&mut self.friend, now, &mut self.friend_budget, self.far);
        assert_eq!((there, back), (BYTES, BYTES), "the neighbour's stream");
        let ended = |e: &Event| matches!(e, Event::SessionEnded { .. } | Event::Close(_));
        assert!(!events.iter().any(ended), "the neighbour's session: {events:?}");
    }

    /// The stream ends in peace; the neighbour holds nothing any more.
    pub fn ends(&mut self, now: Time, shard: &mut Budget) {
        self.friend.finish(now, self.far, None);
        self.session.finish(now, self.near, None);
        self.talk(now, shard);
        assert_eq!(self.session.recv(shard, self.near), Recv::Fin(None));
        assert_eq!(self.friend.recv(&mut self.friend_budget, self.far), Recv::Fin(None));
        self.session.release(now, shard, self.near);
        self.friend.release(now, &mut self.friend_budget, self.far);
        let later = now + Duration::from_millis(30);
        self.session.handle_timeout(later, shard);
        self.friend.handle_timeout(later, &mut self.friend_budget);
        self.talk(later, shard);
    }
}

/// Lets both write until they are silent; the events of the first.
fn talk(now: Time, a: &mut Session, a_budget: &mut Budget, b: &mut Session, b_budget: &mut Budget) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let from_a = transmit(a, now, a_budget);
        let from_b = transmit(b, now, b_budget);
        if from_a.is_empty() && from_b.is_empty() {
            return events;
        }
        b.handle_bytes(now, b_budget, from_a);
        a.handle_bytes(now, a_budget, from_b);
        events.extend(std::iter::from_fn(|| a.poll_event()));
        while b.poll_event().is_some() {}
    }
}

fn write(session: &mut Session, now: Time, budget: &mut Budget, r: StreamRef) {
    assert!(session.room(now, budget, r).is_ok_and(|room| room >= BYTES));
    session.write(now, budget, r, BytesMut::zeroed(FRAME_HEADER_BYTES + BYTES));
}

fn read(session: &mut Session, now: Time, budget: &mut Budget, r: StreamRef) -> usize {
    let mut got = 0;
    while let Recv::Data(bytes) = session.recv(budget, r) {
        got += bytes.len();
        session.consumed(now, budget, r, bytes.len());
    }
    got
}
