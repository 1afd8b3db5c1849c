//! What an endpoint asks its broker to dial: few at a time, so that questions and answers never fill the socket between
//! both and wait for each other.

use std::collections::{HashSet, VecDeque};

use super::limits::{DIALS_OF_ONE_MAX, DIALS_WAITING_MAX};

/// Who waits for a connection: shard, and its number there.
pub type Asker = (usize, u64);

/// A site that a shard wants to reach.
#[derive(Debug, PartialEq, Eq)]
pub struct Dial {
    pub asker: Asker,
    pub host: String,
    pub port: u16,
}

/// What becomes of a new one.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Ask the broker.
    Now(Dial),
    Later,
    /// Too many wait.
    Never,
}

#[derive(Default)]
pub struct Dials {
    under_way: HashSet<Asker>,
    waiting: VecDeque<Dial>,
}

impl Dials {
    pub fn add(&mut self, dial: Dial) -> Turn {
        if self.under_way.len() < DIALS_OF_ONE_MAX {
            self.under_way.insert(dial.asker);
            return Turn::Now(dial);
        }
        if self.waiting.len() >= DIALS_WAITING_MAX {
            return Turn::Never;
        }
        self.waiting.push_back(dial);
        Turn::Later
    }

    /// The broker has answered; who is next.
    pub fn answered(&mut self, asker: Asker) -> Option<Dial> {
        self.under_way.remove(&asker);
        let dial = self.waiting.pop_front()?;
        self.under_way.insert(dial.asker);
        Some(dial)
    }

    /// The broker is gone: everybody who waits.
    pub fn take_all(&mut self) -> Vec<Asker> {
        let waiting = self.waiting.drain(..).map(|dial| dial.asker);
        self.under_way.drain().chain(waiting).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial(id: usize) -> Dial {
        Dial {
            asker: (0, id as u64),
            host: "a.test".into(),
            port: 80,
        }
    }

    #[test]
    fn few_are_under_way_and_the_others_wait_in_order() {
        let mut dials = Dials::default();
        for id in 0..DIALS_OF_ONE_MAX {
            assert_eq!(dials.add(dial(id)), Turn::Now(dial(id)));
        }
        let rest = DIALS_OF_ONE_MAX..DIALS_OF_ONE_MAX + DIALS_WAITING_MAX;
        for id in rest.clone() {
            assert_eq!(dials.add(dial(id)), Turn::Later);
        }
        assert_eq!(dials.add(dial(usize::MAX)), Turn::Never);
        for (answered, next) in rest.enumerate() {
            assert_eq!(dials.answered((0, answered as u64)), Some(dial(next)));
        }
        assert_eq!(dials.answered((0, DIALS_WAITING_MAX as u64)), None);
    }

    #[test]
    fn without_a_broker_nobody_is_forgotten() {
        let mut dials = Dials::default();
        let all = DIALS_OF_ONE_MAX + 5;
        (0..all).for_each(|id| {
            dials.add(dial(id));
        });
        assert_eq!(dials.take_all().len(), all);
        assert_eq!(dials.take_all(), []);
        assert_eq!(dials.add(dial(1)), Turn::Now(dial(1)));
    }
}
