//! Lines of the log about what browsers are told: as many as one can read, whatever a browser does.

use std::cell::Cell;

use crate::http::page::CAUSES;
use crate::limits::ERROR_LINES_APART;
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

    /// Whether an error is to have a line now, and how many of its name had none since the last one. Names that are not
    /// among the causes count as the first of them.
    pub fn due(&self, name: &str, now: Time) -> Option<u64> {
        let row = CAUSES.iter().position(|cause| cause.0 == name);
        let cell = &self.0[row.unwrap_or(0)];
        let last = cell.get();
        if last.at.is_some_and(|at| now.since(at) < ERROR_LINES_APART) {
            cell.set(Last {
                unwritten: last.unwritten + 1,
                ..last
            });
            return None;
        }
        cell.set(Last {
            at: Some(now),
            unwritten: 0,
        });
        Some(last.unwritten)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_name_has_a_line_now_and_then() {
        let lines = ErrorLines::new();
        let begun = Time::now();
        let at = |millis| begun + Duration::from_millis(millis);
        assert_eq!(lines.due("dns", at(0)), Some(0));
        assert_eq!(lines.due("dns", at(1)), None);
        assert_eq!(lines.due("blocked", at(2)), Some(0), "another name has its own");
        assert_eq!(lines.due("dns", at(999)), None);
        assert_eq!(lines.due("dns", at(1_000)), Some(2));
        assert_eq!(lines.due("dns", at(1_999)), None);
        assert_eq!(lines.due("dns", at(60_000)), Some(1));
        assert_eq!(lines.due("dns", at(61_000)), Some(0));
    }
}
