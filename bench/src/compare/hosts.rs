//! Hosts that nobody has asked for: addresses of loopback, which need no name.

use std::cell::Cell;
use std::io;
use std::net::Ipv4Addr;

const FIRST: Ipv4Addr = Ipv4Addr::new(127, 16, 0, 1);
/// The one behind it is for broadcasts.
const LAST: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);

/// Gives out each address once, for all rounds and systems of a run.
pub struct Hosts {
    next: Cell<u32>,
}

impl Hosts {
    pub fn new() -> Self {
        Self {
            next: Cell::new(FIRST.to_bits()),
        }
    }

    /// The next one.
    ///
    /// # Errors
    /// If all were given out.
    pub fn fresh(&self) -> io::Result<Ipv4Addr> {
        let host = self.next.get();
        if host > LAST.to_bits() {
            return Err(io::Error::other(
                "no address of loopback is left that was not asked for",
            ));
        }
        self.next.set(host + 1);
        Ok(Ipv4Addr::from_bits(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_given_out_once_and_the_last_is_no_broadcast() {
        let hosts = Hosts::new();
        let mut before = hosts.fresh().unwrap();
        assert_eq!(before, FIRST);
        while let Ok(host) = hosts.fresh() {
            assert!(host > before && host.is_loopback() && !host.is_broadcast(), "{host}");
            before = host;
        }
        assert_eq!(before, LAST);
        assert!(hosts.fresh().is_err());
    }
}
