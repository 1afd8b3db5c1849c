//! What was counted on both sides, and where it differs.

use std::collections::HashMap;
use std::ops::AddAssign;

use crate::reading::Seen;

/// A request that a server counted.
#[derive(Clone, Debug)]
pub struct Record {
    digest: String,
    pub body_bytes: u64,
    /// For people.
    text: String,
}

impl Record {
    pub fn of(seen: &Seen) -> Self {
        Self {
            digest: seen.digest(),
            body_bytes: seen.body.len() as u64,
            text: describe(seen),
        }
    }

    /// A line of a list, with the length of its body at the end.
    pub fn parse(line: &str) -> Option<Self> {
        let (digest, text) = line.split_once(' ')?;
        let (_, length) = text.rsplit_once(' ')?;
        Some(Self {
            digest: digest.to_owned(),
            body_bytes: length.parse().ok()?,
            text: text.to_owned(),
        })
    }
}

pub fn describe(seen: &Seen) -> String {
    let Seen { method, target, body } = seen;
    format!("{} {} {}", method.escape_ascii(), target.escape_ascii(), body.len())
}

/// What became of one request that we count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server told that it counted just this one.
    Answered,
    /// The server refused it, and so must not have counted it.
    Refused,
    /// Its connection broke: the server may have counted it.
    Lost,
}

/// What is wrong, and with which message.
#[derive(Clone, Debug)]
pub struct Disagreement {
    pub number: Option<u64>,
    pub what: String,
}

#[derive(Default)]
struct Entry {
    number: u64,
    answered: u64,
    lost: u64,
    seen: u64,
}

/// Requests, and what their bodies have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Amount {
    pub requests: u64,
    pub body_bytes: u64,
}

impl Amount {
    pub fn add(&mut self, body_bytes: u64) {
        self.requests += 1;
        self.body_bytes += body_bytes;
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.body_bytes += other.body_bytes;
    }
}

/// The requests to one server, as we count them.
#[derive(Default)]
pub struct Account {
    entries: HashMap<String, Entry>,
    pub answered: Amount,
    pub refused: u64,
    pub lost: Amount,
}

impl Account {
    pub fn add(&mut self, number: u64, seen: &Seen, outcome: Outcome) {
        let entry = self.entries.entry(seen.digest()).or_default();
        entry.number = number;
        let body_bytes = seen.body.len() as u64;
        match outcome {
            Outcome::Answered => {
                entry.answered += 1;
                self.answered.add(body_bytes);
            }
            Outcome::Lost => {
                entry.lost += 1;
                self.lost.add(body_bytes);
            }
            Outcome::Refused => self.refused += 1,
        }
    }

    pub fn merge(&mut self, other: Self) {
        for (digest, entry) in other.entries {
            let own = self.entries.entry(digest).or_default();
            own.number = entry.number;
            own.answered += entry.answered;
            own.lost += entry.lost;
        }
        self.answered += other.answered;
        self.refused += other.refused;
        self.lost += other.lost;
    }

    /// Compares with what the server counted.
    pub fn compare(mut self, records: &[Record]) -> Vec<Disagreement> {
        let mut found = Vec::new();
        for record in records {
            match self.entries.get_mut(&record.digest) {
                Some(entry) => entry.seen += 1,
                None => found.push(Disagreement {
                    number: None,
                    what: format!("the server counts a request that we do not: {}", record.text),
                }),
            }
        }
        for entry in self.entries.values() {
            if !(entry.answered..=entry.answered + entry.lost).contains(&entry.seen) {
                found.push(Disagreement {
                    number: Some(entry.number),
                    what: format!(
                        "{} answered, {} lost, but {} counted",
                        entry.answered, entry.lost, entry.seen
                    ),
                });
            }
        }
        found
    }
}
