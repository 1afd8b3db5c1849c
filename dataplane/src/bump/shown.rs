//! What a browser was shown, beside what is seen now.

use super::{Seen, Verdict};
use crate::mux::Shown;

impl Seen {
    /// As a stream names it.
    pub fn shown(&self) -> Shown {
        Shown {
            verdict: self.verdict.0,
            leaf: self.leaf,
        }
    }

    /// Whether a browser that was shown this would be shown the same now. Certificates with nothing wrong are all alike.
    pub fn is_as(&self, shown: &Shown) -> bool {
        self.verdict.0 == shown.verdict && (self.verdict.is_good() || self.leaf == shown.leaf)
    }

    /// The site speaks before its client does: it does not speak TLS.
    pub fn spoke_first(&self) -> bool {
        self.verdict.has(Verdict::SPOKE_FIRST)
    }
}
