//! Every bound and time limit of `sc-cloud`, each with its reason; those of the bytes are in `dataplane::limits`.

use std::time::Duration;

use dataplane::http::page::CAUSES;
use dataplane::limits::{self, ERROR_LINES_APART};

// ── Tunnels ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// Live tunnels of one account.
pub const TUNNELS_PER_ACCOUNT_MAX: usize = 100;
/// Links of one member: the original's successor opens 16 connections at most, too.
pub const LINKS_MAX: u16 = 16;
/// A tunnel without link and heartbeat is kept this long.
pub const LOST_AFTER: Duration = Duration::from_secs(90);
/// What one tunnel's task has not read yet.
pub const COMMANDS_WAITING_MAX: usize = 64;
/// Tunnels without a sign of life are looked for this often.
pub const LOST_CHECK: Duration = Duration::from_secs(1);
/// Streams of a tunnel that ends while nobody waits for them.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
/// All endpoints have ended after SIGTERM, or are killed.
pub const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

// ── REST ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// A request head must be there; an idle connection is closed.
pub const REST_HEAD_MAX: Duration = Duration::from_secs(60);
/// A request, from its head to its answer.
pub const REST_REQUEST_MAX: Duration = Duration::from_secs(60);
/// Bodies of all requests but the one that makes a tunnel.
pub const SMALL_BODY_BYTES_MAX: usize = 256 * 1024;
/// A body that is too long is read this far, so that its sender gets the answer.
pub const DISCARDED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// An endpoint that does not say how many streams it has.
pub const STREAMS_ANSWER_MAX: Duration = Duration::from_secs(1);
/// `all_tunnels` without `limit`, and at most.
pub const HISTORY_DEFAULT: u32 = 100;
pub const HISTORY_MAX: u32 = 1_000;
/// A DELETE's `reason`.
pub const REASON_BYTES_MAX: usize = 64;

// ── Store ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Name of an account.
pub const USER_BYTES_MAX: usize = 64;
/// Calls that wait for the store's thread; more wait in their callers.
pub const STORE_CALLS_MAX: usize = 256;
/// Another process (`sc-cloud user add`) may hold the file this long.
pub const STORE_BUSY_MS_MAX: u64 = 5_000;
/// Tunnels kept for all accounts together; the oldest make room.
pub const TUNNELS_KEPT_MAX: u32 = 10_000;
/// Of each: together at most 160 MB on disk, and 16 MB in the longest answer. Rules alone may be 4 MiB.
pub const TUNNEL_KEPT_BYTES_MAX: usize = 16 * 1024;

// ── Front ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Accepted in one turn of the listener.
pub const ACCEPTS_PER_TURN: usize = 16;
/// Connections a second from all addresses: a suite that redials at once passes, a flood costs no TLS.
pub const ACCEPTS_BURST: u32 = 4_096;
pub const ACCEPTS_PER_SECOND: u32 = 2_000;
/// From one address (IPv6: one /64): a company behind one address, with many `sc`.
pub const ACCEPTS_OF_ONE_BURST: u32 = 1_024;
pub const ACCEPTS_OF_ONE_PER_SECOND: u32 = 200;
/// Addresses with a count of their own; more share one.
pub const ADDRESSES_MAX: usize = 4_096;
/// Of one address, hellos that are not complete: its own oldest makes room before those of others do.
pub const PENDING_OF_ONE_MAX: usize = limits::CLIENT_HELLOS_PENDING_MAX / 4;
/// Connections to REST, and of one address; at the bound the oldest makes room: clients keep idle ones for long.
pub const REST_CONNECTIONS_MAX: usize = 512;
pub const REST_OF_ONE_MAX: usize = REST_CONNECTIONS_MAX / 4;
/// The request under way on a connection that makes room; most take milliseconds.
pub const REST_FAREWELL_MAX: Duration = Duration::from_secs(2);
/// A client that goes on sending gets this long to take its alert.
pub const ALERT_MAX: Duration = Duration::from_secs(1);
/// Descriptors have run out: look again after this.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

// ── Broker ────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Connections that wait in the kernel for a proxy port; `net.core.somaxconn` may be less.
pub const LISTEN_BACKLOG: i32 = 4_096;
/// Sockets that wait for one endpoint before its listener pauses.
pub const FDS_WAITING_MAX: usize = 256;
/// Descriptors have run out, or every shard's queue is full: look again after this.
pub const BROKER_PAUSE: Duration = Duration::from_millis(50);
/// One attempt of the self-test, from connect to answer.
pub const PROBE_ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// Between attempts, doubling.
pub const PROBE_BACKOFF_MIN: Duration = Duration::from_millis(50);
pub const PROBE_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A good answer is some hundred bytes long.
pub const PROBE_ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// Connections that are under way for endpoints to sites which are reached without the tunnel, of all and of each one:
/// questions and answers of one fit the socket between it and the broker.
pub const DIALS_MAX: usize = 256;
pub const DIALS_OF_ONE_MAX: usize = 64;
/// Those of one endpoint that wait for their turn.
pub const DIALS_WAITING_MAX: usize = 1_024;
/// One address of a site accepts the connection, all of them together, and its name is found.
pub const DIAL_ADDRESS_MAX: Duration = limits::DIAL_ADDRESS_DEFAULT;
pub const DIAL_MAX: Duration = Duration::from_secs(30);
pub const LOOKUP_MAX: Duration = Duration::from_secs(10);
/// The next address of a site is tried beside the one before it (RFC 8305 section 8).
pub const DIAL_STAGGER: Duration = limits::DIAL_STAGGER;

// ── Endpoint processes ────────────────────────────────────────────────────────────────────────────────────────────

/// From the start of the process to its key.
pub const BOOT_MAX: Duration = Duration::from_secs(10);
/// An endpoint that takes no message for this long is as good as dead.
pub const SEND_MAX: Duration = Duration::from_secs(5);
/// Between the end of its control socket and the end of the process.
pub const EXIT_MAX: Duration = Duration::from_millis(500);
/// Deaths of one tunnel's endpoints within [`DEATHS_SPAN`]; a tunnel with more is given up.
pub const DEATHS_MAX: usize = 10;
pub const DEATHS_SPAN: Duration = Duration::from_secs(60);
/// Between a death and the next process, if it was not the only death in [`DEATHS_SPAN`].
pub const RELAUNCH_PAUSE: Duration = Duration::from_millis(100);
/// Lines of one endpoint that reach the log: at once, and a second.
pub const LINES_BURST: u32 = 200;
pub const LINES_PER_SECOND: u32 = 20;
/// Errors of all names leave room for other lines.
const _: () = assert!(CAUSES.len() as u64 <= ERROR_LINES_APART.as_secs() * LINES_PER_SECOND as u64 * 3 / 4);
/// Files of what endpoints wrote to stderr (panics) that are kept; each is one tunnel's.
pub const STDERR_FILES_MAX: usize = 100;
/// `serve` is gone: its endpoints wait this long for another one.
pub const ORPHANED_MAX: Duration = Duration::from_secs(90);
/// Then they drain, and streams may go on for this long.
pub const LEAVE_MAX: Duration = Duration::from_secs(2);
/// From an offer to an orphan to its answer; it may have been out of descriptors.
pub const OFFER_MAX: Duration = Duration::from_secs(5);
/// An orphan that has answered to no offer by then is replaced: twice as long as one may be stopped.
pub const ADOPT_MAX: Duration = Duration::from_secs(20);
/// Between two looks whether an orphan has taken earlier offers.
pub const OFFER_PAUSE: Duration = Duration::from_millis(100);
/// Rules that a member of a pool sends wait this long for the same rules of the others, unless told otherwise.
pub const POOL_RELOAD_MAX: Duration = Duration::from_secs(60);
/// Different rules that wait so at one time: each may be as long as rules can be.
pub const PROPOSALS_MAX: usize = 2;
/// Events passed on in one turn.
pub const EVENTS_PER_TURN: usize = 64;
/// Bytes of one message.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Descriptors beside one message: one browser socket for each shard of an endpoint is the most that goes at once.
pub const MESSAGE_FDS_MAX: usize = 64;
/// Bytes of settings in one `ToEndpoint::Rules`: with Base64 around them they fit one message.
pub const RULES_PART_BYTES_MAX: usize = 32 * 1024;
/// Texts from an endpoint: it may have been taken over.
pub const ENDPOINT_TEXT_BYTES_MAX: usize = 1_024;
/// Layers of its sandbox that an endpoint may say it lacks.
pub const LAYERS_MAX: usize = 8;
/// One tunnel needs no more cores; the broker's bound on waiting sockets is a sum over the shards.
pub const SHARDS_MAX: usize = 32;

const _: () = assert!(crate::api::BODY_BYTES_MAX < DISCARDED_BYTES_MAX);
const _: () = assert!(LINKS_MAX <= limits::LINKS_MAX);
const _: () = assert!(DIAL_MAX.as_secs() < limits::DIRECT_DIAL_MAX.as_secs());
const _: () = assert!(TUNNELS_PER_ACCOUNT_MAX <= limits::MEMBERS_MAX);
// Beside the control socket, or the one of the adoption.
const _: () = assert!(SHARDS_MAX < MESSAGE_FDS_MAX);
const _: () = assert!(OFFER_MAX.as_secs() < ADOPT_MAX.as_secs());
const _: () = assert!(ADOPT_MAX.as_secs() < ORPHANED_MAX.as_secs());
const _: () = assert!(ACCEPTS_PER_TURN <= limits::BROWSERS_PER_MESSAGE);
const _: () = assert!(DRAIN_MAX.as_secs() < SHUTDOWN_MAX.as_secs());
