//! What the broker and an endpoint process say to each other: one JSON text a message, descriptors beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use dataplane::settings::Times;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::adoption::Key;
use super::limits::ENDPOINT_TEXT_BYTES_MAX;
use super::seqpacket::Seqpacket;
use super::tunnel_ca::TunnelCa;
use crate::api::Counts;

/// Time limits of one endpoint.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct EndpointTimes {
    pub browser_head: Duration,
    pub browser_body: Duration,
    pub browser_idle: Duration,
    pub resume_window: Duration,
    /// Without its broker it stays this long.
    pub orphaned: Duration,
}

impl EndpointTimes {
    /// What the data plane has of them.
    pub fn times(&self) -> Times {
        Times {
            browser_head: self.browser_head,
            browser_body: self.browser_body,
            browser_idle: self.browser_idle,
            resume_window: self.resume_window,
            ..Times::default()
        }
    }
}

/// From the broker to an endpoint.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToEndpoint {
    /// A piece of the settings' JSON, Base64; `Start` takes all pieces so far.
    Rules {
        part: String,
    },
    /// First but for `Rules`; beside it the socket of the adoption, and one for the browsers of each shard.
    Start {
        tunnel: String,
        shards: usize,
        driver: String,
        max_streams: usize,
        memory_bytes: usize,
        version: u32,
        /// How long ago the last link was lost, if an earlier process had any.
        dark_ms: Option<u64>,
        /// How long new rules of one member wait for those of the others.
        reload_ms: u64,
        times: EndpointTimes,
        /// None if the endpoint was made by a version without.
        ca: Option<TunnelCa>,
        /// What offers of another broker have to show.
        adoption: Key,
    },
    /// A member, by the SHA-256 of its public key; later the first half of that names it.
    Attach {
        fingerprint: String,
        index: usize,
    },
    /// Drain this member; `Parted` follows.
    Part {
        member: String,
    },
    /// End what is left of this member.
    Detach {
        member: String,
    },
    /// Beside it the link's socket; `first` is Base64 of what was read from it.
    Link {
        member: String,
        link: u16,
        first: String,
    },
    /// The answer to `Dial`; beside it the socket, if there is one.
    Dialled {
        shard: usize,
        id: u64,
        outcome: Result<SocketAddr, Unreached>,
    },
    /// Drain all; `Drained` follows.
    Drain,
    Report,
}

/// Why a site was not reached.
#[derive(Debug, Serialize, Deserialize)]
pub struct Unreached {
    /// The name of a [`dataplane::mux::Code`].
    pub code: String,
    pub text: String,
}

/// From an endpoint to the broker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromEndpoint {
    /// Everything runs; the key was made in the process and never leaves it.
    Ready {
        fingerprint: String,
        driver: String,
        /// Layers of the sandbox that the kernel refuses, a sentence each.
        refused: Vec<String>,
    },
    /// The answer to a broker that adopts it, behind the `Rules` in force.
    Adopted {
        fingerprint: String,
        driver: String,
        members: Vec<Present>,
        /// False from one that takes strangers for browsers.
        #[serde(default)]
        knows_strangers: bool,
    },
    LinkUp {
        member: String,
        link: u16,
    },
    LinkDown {
        member: String,
        link: u16,
        reason: String,
    },
    /// Connect to a site that is reached without the tunnel; `Dialled` follows.
    Dial {
        shard: usize,
        id: u64,
        host: String,
        port: u16,
    },
    Log {
        level: String,
        text: String,
    },
    /// Of each member, and of all together.
    Report {
        members: Vec<MemberCounts>,
        #[serde(default)]
        errors: BTreeMap<String, u64>,
    },
    /// A piece of the JSON of new rules, Base64; `Switched` ends it.
    Rules {
        part: String,
    },
    /// The rules sent before it are in force.
    Switched,
    Parted {
        member: String,
    },
    Drained,
    Failed {
        text: String,
    },
}

/// A member that an endpoint has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Present {
    pub member: String,
    pub links: BTreeSet<u16>,
    /// Nothing is left of it but its seat.
    pub parted: bool,
}

/// What an endpoint has counted of one member.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemberCounts {
    pub member: String,
    #[serde(flatten)]
    pub counts: Counts,
}

/// Name of the member with this fingerprint: its first half.
pub fn member(fingerprint: &str) -> &str {
    fingerprint.get(..32).unwrap_or_default()
}

/// Sends `message` with `fds` beside it.
///
/// # Errors
/// The other end is gone.
pub async fn send<M: Serialize>(socket: &Seqpacket, message: &M, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    socket.send(&serde_json::to_vec(message)?, fds).await
}

/// Receives one message; `None` when the other end is closed.
///
/// # Errors
/// What arrived is no message of this kind.
pub async fn receive<M: DeserializeOwned>(socket: &Seqpacket) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut buffer = Vec::new();
    let Some(fds) = socket.receive(&mut buffer).await? else {
        return Ok(None);
    };
    Ok(Some((serde_json::from_slice(&buffer)?, fds)))
}

/// `bytes` as Base64.
pub fn encode(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// The inverse of [`encode`].
///
/// # Errors
/// `text` is not Base64.
pub fn decode(text: &str) -> io::Result<Vec<u8>> {
    BASE64
        .decode(text)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Ends a line, or turns the direction in which it is read (Unicode standard annex 9, section 2).
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` cut to [`ENDPOINT_TEXT_BYTES_MAX`] bytes, without characters that control how it is shown.
pub fn clean(text: &str) -> String {
    let mut end = text.len().min(ENDPOINT_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if steers(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::http::page::CAUSES;

    use crate::api::CacheCounts;
    use crate::cloud::limits::{LINKS_MAX, MESSAGE_BYTES_MAX, RULES_PART_BYTES_MAX, TUNNELS_PER_ACCOUNT_MAX};

    #[test]
    fn the_biggest_messages_fit() {
        let rules = ToEndpoint::Rules {
            part: encode(&vec![0; RULES_PART_BYTES_MAX]),
        };
        let link = ToEndpoint::Link {
            member: "f".repeat(32),
            link: u16::MAX,
            first: encode(&vec![0; dataplane::limits::CLIENT_HELLO_BYTES_MAX]),
        };
        for message in [rules, link] {
            assert!(serde_json::to_vec(&message).unwrap().len() <= MESSAGE_BYTES_MAX);
        }
        let one = || MemberCounts {
            member: "f".repeat(32),
            counts: Counts {
                requests: u64::MAX,
                streams: u64::MAX,
                resumes: u64::MAX,
                frames_replayed: u64::MAX,
                cache: CacheCounts {
                    hits: u64::MAX,
                    misses: u64::MAX,
                    bytes_saved: u64::MAX,
                    entries: u64::MAX,
                    bytes: u64::MAX,
                },
                errors: BTreeMap::new(),
            },
        };
        // A pool is of one account.
        let report = FromEndpoint::Report {
            members: std::iter::repeat_with(one).take(TUNNELS_PER_ACCOUNT_MAX).collect(),
            errors: CAUSES.iter().map(|cause| (cause.0.to_owned(), u64::MAX)).collect(),
        };
        assert!(serde_json::to_vec(&report).unwrap().len() <= MESSAGE_BYTES_MAX);
        let one = || Present {
            member: "f".repeat(32),
            links: (0..LINKS_MAX).collect(),
            parted: false,
        };
        let adopted = FromEndpoint::Adopted {
            fingerprint: "f".repeat(64),
            driver: "x".repeat(ENDPOINT_TEXT_BYTES_MAX),
            members: std::iter::repeat_with(one)
                .take(dataplane::limits::MEMBERS_MAX)
                .collect(),
            knows_strangers: false,
        };
        assert!(serde_json::to_vec(&adopted).unwrap().len() <= MESSAGE_BYTES_MAX);
    }

    #[test]
    fn texts_are_cut_at_a_character() {
        assert_eq!(clean("a\nb\u{1b}[1m"), "a b [1m");
        assert_eq!(clean("a\u{2028}b\u{202e}c\u{2066}d\u{e9}"), "a b c d\u{e9}");
        let long = "é".repeat(ENDPOINT_TEXT_BYTES_MAX);
        assert_eq!(clean(&long).len(), ENDPOINT_TEXT_BYTES_MAX);
        assert!(clean(&format!("x{long}")).len() < ENDPOINT_TEXT_BYTES_MAX);
    }
}
