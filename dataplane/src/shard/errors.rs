//! Lines of the log about what browsers are told: as many as one can read, whatever a browser does.

use std::cell::Cell;
use std::time::Duration;

use crate::http::page::CAUSES;
use crate::time::Time;

/// By cause, as [`CAUSES`] has them.
pub(super) struct ErrorLines([Cell<Last>; CAUSES.len()]);

#[derive(Clone, Copy, Default)]
struct Last {
    /// When the last line was written.
    at: Option<Time>,
    /// That had none since.
    unwritten: u64,
}

impl ErrorLines {
    pub fn new() -> Self {
        Self([const { Cell::new(Last { at: None, unwritten: 0 }) }; CAUSES.len()])
    }

    /// Whether an error is to have a line now, and for how many of its name it stands: this one, and those that had none since
    /// the last line, `apart` ago or more. Names that are not among the causes count as the first of them.
    pub fn due(&self, name: &str, now: Time, apart: Duration) -> Option<u64> {
        let row = CAUSES.iter().position(|cause| cause.0 == name);
        let cell = &self.0[row.unwrap_or(0)];
        let Last { at, unwritten } = cell.get();
        let is_due = at.is_none_or(|at| now.since(at) >= apart);
        cell.set(match is_due {
            true => Last {
                at: Some(now),
                unwritten: 0,
            },
            false => Last {
                at,
                unwritten: unwritten + 1,
            },
        });
        is_due.then_some(unwritten + 1)
    }
}

/// The count stands in front: what follows may be foreign, and may be cut.
pub(super) fn line(name: &str, times: u64, reason: &str) -> String {
    let colon = if reason.is_empty() { "" } else { ": " };
    match times {
        1 => format!("{name}{colon}{reason}"),
        _ => format!("{name} ({times} times){colon}{reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_a_line_now_and_then() {
        let lines = ErrorLines::new();
        let begun = Time::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let due = |name, millis| lines.due(name, at(millis), Duration::from_secs(1));
        assert_eq!(due("dns", 0), Some(1));
        assert_eq!(due("dns", 1), None);
        assert_eq!(due("blocked", 2), Some(1), "another name has its own");
        assert_eq!(due("dns", 999), None);
        assert_eq!(due("dns", 1_000), Some(3));
        assert_eq!(due("dns", 1_999), None);
        assert_eq!(due("dns", 60_000), Some(2));
        assert_eq!(due("dns", 61_000), Some(1));
    }

    #[test]
    fn a_line_says_how_often() {
        assert_eq!(line("dns", 1, "a.test: none"), "dns: a.test: none");
        assert_eq!(line("dns", 7, "a.test: none"), "dns (7 times): a.test: none");
        assert_eq!(line("limit", 2, ""), "limit (2 times)");
    }
}
