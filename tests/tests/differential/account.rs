//! What was counted on both sides, and where it differs.

use std::collections::HashMap;

use crate::reading::Seen;

/// A request that a server counted.
#[derive(Clone, Debug)]
pub struct Record {
    digest: String,
    /// For people.
    text: String,
}

impl Record {
    pub fn of(seen: &Seen) -> Self {
        Self {
            digest: seen.digest(),
            text: describe(seen),
        }
    }

    /// A line of a list.
    pub fn parse(line: &str) -> Option<Self> {
        let (digest, text) = line.split_once(' ')?;
        Some(Self {
            digest: digest.to_owned(),
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

/// The requests to one server, as we count them.
#[derive(Default)]
pub struct Account {
    entries: HashMap<String, Entry>,
    pub answered: u64,
    pub refused: u64,
    pub lost: u64,
}

impl Account {
    pub fn add(&mut self, number: u64, seen: &Seen, outcome: Outcome) {
        let entry = self.entries.entry(seen.digest()).or_default();
        entry.number = number;
        match outcome {
            Outcome::Answered => (entry.answered, self.answered) = (entry.answered + 1, self.answered + 1),
            Outcome::Lost => (entry.lost, self.lost) = (entry.lost + 1, self.lost + 1),
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
