//! Every bound and every time limit, each with its reason; asserts tie them to each other.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

// ── Frames and records ────────────────────────────────────────────────────────────────────────────────────────

/// Plaintext of one TLS record (RFC 8446 section 5.1).
pub const RECORD_BYTES_MAX: usize = 16_384;
/// Header of a frame: length u16, type u8, 0 u8, stream u64.
pub const FRAME_HEADER_BYTES: usize = 12;
/// Payload of a frame: header and payload fit one record.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = RECORD_BYTES_MAX - FRAME_HEADER_BYTES;
/// Text for people in RESET, GOAWAY, SETTINGS_ACK.
pub const FRAME_TEXT_BYTES_MAX: usize = 256;
/// All parts of one SETTINGS together: 10,000 rules of 100 bytes with room to spare.
pub const SETTINGS_BYTES_MAX: usize = 4 * MIB;

/// `-F`: its expressions, all together. Each is parsed before anything of the result is bounded, and two bytes (`\w`) may
/// become six KiB of ranges then.
pub const FAST_FAIL_TEXT_BYTES_MAX: usize = 16 * KIB;
/// What they compile to.
pub const FAST_FAIL_PROGRAM_BYTES_MAX: usize = 8 * MIB;
/// What a shard keeps of the states that searches went through.
pub const FAST_FAIL_CACHE_BYTES_MAX: usize = MIB;
/// Groups in groups: compiling recurses.
pub const FAST_FAIL_NESTING_MAX: u32 = 100;

/// The first bytes inside a CONNECT are held so long where they may yet become a request.
pub const SNIFF_MAX: Duration = Duration::from_millis(200);
/// Streams of one shard of an endpoint that go past the tunnel (`-D`, `-t`).
pub const DIRECT_STREAMS_MAX: usize = 1_024;
/// What each holds in one direction: the sockets at both of its ends hold far more.
pub const PIPE_BYTES: usize = 16 * KIB;
/// A piece that waits counts as so many bytes more.
pub const PIPE_PIECE_BYTES: usize = 128;
/// The broker answers a dial within this time; its own limits are shorter.
pub const DIRECT_DIAL_MAX: Duration = Duration::from_secs(35);

// ── Streams and flow control (a shard's share is the process's figure divided by its shards) ──────────────────

/// Streams that the endpoint may have open towards one `sc` process (`--max-streams`).
pub const ENDPOINT_STREAMS_MAX: usize = 8_192;
/// Streams that `sc` may have open towards the endpoint (relay).
pub const CLIENT_STREAMS_MAX: usize = 1_024;
/// Credit that a peer-opened stream always has: a request with its head fits.
pub const BASE_CREDIT_PEER_BYTES: usize = 16 * KIB;
/// Credit that an own stream always has: it never starves, however full the pool is.
pub const BASE_CREDIT_OWN_BYTES: usize = 4 * KIB;
/// First grant of an own stream when the link has not been measured yet.
pub const FIRST_GRANT_BYTES: usize = 64 * KIB;
/// No window grows beyond it: 10 Gbit/s at 50 ms.
pub const WINDOW_BYTES_MAX: usize = 64 * MIB;
/// From this round trip on windows may grow fourfold: below it doubling takes no time that anybody would notice, and
/// larger windows only let more pile up outside the caches.
pub const LONG_ROUND_TRIP: Duration = Duration::from_millis(5);
/// Receive pool of one shard of `sc`.
pub const CLIENT_POOL_BYTES: usize = 64 * MIB;
/// Receive pool of one shard of an endpoint: downloads are the bulk, and half of it is what one stream alone may have.
pub const ENDPOINT_POOL_BYTES: usize = 128 * MIB;
/// CREDIT leaves once so much of a window was used, of a small window its half: a large one refilled by halves would
/// carry little more than half of itself in a round trip.
pub const CREDIT_STEP_BYTES: usize = MIB;
/// Retained and queued bytes of one shard of `sc`: its link's share (`LINK_SHARE`) holds the largest window until it is
/// acknowledged.
pub const CLIENT_TX_BYTES: usize = 96 * MIB;
/// Retained and queued bytes of one shard of an endpoint.
pub const ENDPOINT_TX_BYTES: usize = 64 * MIB;
/// A link's share of what the other links of its shard leave of the send budget: parts of a whole.
pub const LINK_SHARE: (usize, usize) = (3, 4);
/// Frames other than DATA that a link may hold beyond the budget.
pub const CONTROL_RESERVE_BYTES: usize = 256 * KIB;
/// Refusals (RESET limit) that may be pending before the session ends.
pub const REFUSALS_PENDING_MAX: usize = 1_024;
/// SETTINGS of a session that the control thread has not answered yet: many short ones, or a few of the longest.
pub const SETTINGS_UNANSWERED_BYTES_MAX: usize = 4 * SETTINGS_BYTES_MAX;
/// Heads that wait while no link is up.
pub const WAITING_HEADS_MAX: usize = 1_024;
/// Waiting heads started in one turn once a link is up.
pub const WAITING_STARTS_PER_TURN: usize = 64;
/// One write to a link.
pub const LINK_WRITE_BYTES_MAX: usize = 128 * KIB;
/// One turn of a stream in the schedule.
pub const QUANTUM_BYTES: usize = 16 * KIB;
/// ACK at the latest after this many counted bytes …
pub const ACK_BYTES: u64 = 64 * KIB as u64;
/// … or after this time.
pub const ACK_DELAY: Duration = Duration::from_millis(25);
/// A slice of a link's read buffer that waits longer moves into a buffer of its own size.
pub const SLICE_AGE_MAX: Duration = Duration::from_millis(10);
/// … or behind which so many bytes have come: after a pause a link may bring ten times as much in that time as on average.
pub const SLICES_IN_READ_BUFFERS_MAX: u64 = 4 * MIB as u64;
/// Slices that are moved together, so that many small frames do not cost a buffer each.
pub const SLICE_MERGE_BYTES: usize = 16 * KIB;
/// PONGs that may wait for a write; a peer has one PING out.
pub const PONGS_PENDING_MAX: usize = 16;
/// While the pool is low, idle streams are looked for this often.
pub const RECALL_INTERVAL: Duration = Duration::from_millis(250);
/// Credit of a stream that was idle this long may be recalled.
pub const RECALL_IDLE: Duration = Duration::from_millis(500);

// ── Floods (token buckets of a session) ───────────────────────────────────────────────────────────────────────

/// PING, SETTINGS_ACK, and frames that change nothing: burst and refill a second, each.
pub const IDLE_FRAMES_BURST: u32 = 1_000;
pub const IDLE_FRAMES_PER_SECOND: u32 = 200;
/// Streams reset by their opener before 1 KiB was served: burst and refill a second.
pub const EARLY_RESETS_BURST: u32 = 16_384;
pub const EARLY_RESETS_PER_SECOND: u32 = 4_000;
/// A reset is early below this many served bytes.
pub const EARLY_RESET_BYTES: u64 = 1_024;
/// Resets this soon after a resume are not charged: the outage caused them.
pub const EARLY_RESET_GRACE: Duration = Duration::from_secs(5);

// ── Liveness and resume ───────────────────────────────────────────────────────────────────────────────────────

/// An outage this long is invisible to browsers and sites.
pub const OUTAGE_INVISIBLE: Duration = outage_invisible(RESUME_WINDOW);
/// A session's streams end this long after the first loss without progress: the promise, detection, back-off, dials.
pub const RESUME_WINDOW: Duration = Duration::from_secs(45);

/// What a resume window promises: the rest of it is for detection, back-off and dials.
pub const fn outage_invisible(resume_window: Duration) -> Duration {
    Duration::from_millis(resume_window.as_millis() as u64 / 3 * 2)
}

/// A link without a connection for this long takes no new streams and reads no local socket.
pub const LINK_DOWN_GRACE: Duration = Duration::from_secs(1);
/// PING after this long without anything received, with streams open.
pub const PING_IDLE: Duration = Duration::from_secs(1);
/// PING while data flows, for the round trip.
pub const PING_BUSY: Duration = Duration::from_secs(2);
/// PING without streams.
pub const PING_REST: Duration = Duration::from_secs(15);
/// Least time until a silent connection counts as dead.
pub const DEAD_AFTER_MIN: Duration = Duration::from_secs(3);
/// Bytes arrive, but neither PONG nor a rising ACK: dead after this.
pub const DEAD_WITHOUT_PROGRESS: Duration = Duration::from_secs(15);
/// A timer this late means that the process did not run, not that the peer was silent.
pub const LATE_TIMER: Duration = Duration::from_millis(500);
/// How long the least round trip is remembered.
pub const RTT_MEMORY: Duration = Duration::from_secs(10);
/// PONGs arrive but no ACK rises, with ≥ `ACK_BYTES` unacknowledged: session error.
pub const ACK_STALL_MAX: Duration = Duration::from_secs(30);
/// … as at least so many PONGs show.
pub const ACK_STALL_PONGS_MIN: u32 = 4;
/// A link's first contact: proxy, TCP, TLS and HELLO together.
pub const FIRST_DIAL_MAX: Duration = Duration::from_secs(15);
/// The endpoint gives up a handshake.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Back-off between dials, doubling with jitter.
pub const DIAL_BACKOFF_MIN: Duration = Duration::from_millis(100);
pub const DIAL_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A connection that lived shorter is redialled only after as long.
pub const CONNECTION_LIFE_MIN: Duration = Duration::from_secs(2);
/// Session errors within `SESSION_ERRORS_SPAN` before a link backs off to `SESSION_ERRORS_BACKOFF`.
pub const SESSION_ERRORS_MAX: usize = 3;
pub const SESSION_ERRORS_SPAN: Duration = Duration::from_secs(60);
pub const SESSION_ERRORS_BACKOFF: Duration = Duration::from_secs(30);
/// Streams of a tunnel that ends while somebody waits for them.
pub const DRAIN_MAX: Duration = Duration::from_secs(300);
/// Opaque connections on which nothing moves any more are waited for this long: browsers keep unused ones for minutes,
/// and tests rarely think for so long.
pub const DRAIN_SILENCE_MAX: Duration = Duration::from_secs(15);

// ── TLS of links ──────────────────────────────────────────────────────────────────────────────────────────────

/// Our KeyUpdate leaves before this many records were sealed under one key (RFC 8446 section 5.5: 2^24.5 for AES-GCM).
pub const RECORDS_PER_KEY_MAX: u64 = 1 << 23;
/// The peer may update its key once in this time.
pub const KEY_UPDATE_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Ciphertext of one record (RFC 8446 section 5.2).
pub const RECORD_CIPHERTEXT_BYTES_MAX: usize = RECORD_BYTES_MAX + 256;
/// Handshake messages of one side together.
pub const HANDSHAKE_BYTES_MAX: usize = 64 * KIB;
/// Content that a browser's or a site's TLS seals at a time: a record, and so what it may hold for a socket that takes
/// nothing.
pub const TLS_WRITE_BYTES_MAX: usize = 16 * KIB;
/// Records that it writes in a row while the socket takes them.
pub const TLS_WRITES_MAX: usize = 4;
/// One read of it.
pub const TLS_READ_BYTES: usize = 32 * KIB;
/// Reads in a row that bring no content: session tickets, and the beginnings of long records.
pub const TLS_FILLS_MAX: usize = 4;
/// A browser's ClientHello: those with post-quantum shares have 2 KiB.
pub const HELLO_BYTES_MAX: usize = 16 * KIB;
/// Frames up to this size share a record by copying; above it a record of its own (22 bytes) is cheaper than a copy.
pub const PACKED_FRAME_BYTES_MAX: usize = 4 * KIB;
/// Records without content in a row: they cost the peer 22 bytes and us a decryption (OpenSSL allows as many).
pub const EMPTY_RECORDS_MAX: u32 = 32;

// ── Shards ────────────────────────────────────────────────────────────────────────────────────────────────────

/// A link is read into buffers of this size: the bulk of many streams in one read.
pub const LINK_READ_BYTES: usize = 256 * KIB;
/// With less room than two records a link's read buffer is replaced.
pub const LINK_READ_BYTES_MIN: usize = 2 * (RECORD_CIPHERTEXT_BYTES_MAX + 5);
/// `TCP_NOTSENT_LOWAT` of links: the queue stands in the schedule, where it is fair, and not in the kernel.
pub const LINK_NOTSENT_BYTES: u32 = 128 * KIB as u32;
/// A closing connection gets this long to write what is left and to read the peer's last bytes.
pub const CLOSE_LINGER: Duration = Duration::from_secs(1);
/// An OPEN that the flood limit holds back is tried again after this long.
pub const OPEN_PACE: Duration = Duration::from_millis(50);
/// Commands that wait for one shard: links, reloads and forwarded browsers, each taken in one turn.
pub const COMMANDS_MAX: usize = 1_024;
/// Events that wait for the control thread; lines of the log are dropped above half of it.
pub const EVENTS_MAX: usize = 4_096;
/// Between two lines about errors of one name that browsers are told of: all shards together write no more than if they were
/// one.
pub const ERROR_LINES_APART: Duration = Duration::from_secs(2);
/// Messages with browsers' descriptors read in one turn.
pub const BROWSER_MESSAGES_PER_TURN: usize = 16;
/// Descriptors in one of these messages.
pub const BROWSERS_PER_MESSAGE: usize = 16;
/// Nonce of a self-test.
pub const PROBE_BYTES_MAX: usize = KIB;
/// A self-test's echo must be back.
pub const PROBE_MAX: Duration = Duration::from_secs(10);
/// Descriptors of a process: standard streams, REST or the broker, log, signals.
pub const FDS_PROCESS: usize = 64;
/// Of the look-ups of `sc`: glibc holds a socket for each name server, of which it knows three (`MAXNS`), and one thread
/// reads /etc/hosts.
pub const FDS_LOOKUPS: u64 = 3 * LOOKUP_THREADS_MAX as u64 + 1;
/// Of one of its shards: ring, mailboxes, look-ups' bell.
pub const FDS_SHARD: usize = 16;
/// Of a link: its connection, and the one that takes over.
pub const FDS_LINK: usize = 2;
/// Connections of one shard above the first mark, each of which is told so and closed. When all are there, at the second
/// mark, no more is taken.
pub const REFUSED_MAX: usize = 64;
/// Connections of one shard from networks that may not use the proxy; what comes beyond is closed without a word.
pub const STRANGERS_MAX: usize = 16;
/// At the second mark it is looked again after this.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// More descriptors than any bound on streams asks for.
const FDS_COUNTED_MAX: u64 = 1 << 24;

/// The first mark: connections of one shard, links included, for which a limit of `files` descriptors has room beside
/// all else that can be open at once.
pub const fn connections_max(files: u64, shards: usize) -> usize {
    let files = if files < FDS_COUNTED_MAX {
        files
    } else {
        FDS_COUNTED_MAX
    };
    // What the last message brings comes on top: it is counted once it is there. And those that were refused end together:
    // the ring closes them a turn after they have ceased to count, when others are there already.
    let shard = FDS_SHARD + 2 * REFUSED_MAX + BROWSERS_PER_MESSAGE;
    let share = (files as usize).saturating_sub(FDS_PROCESS) / shards;
    let rest = share.saturating_sub(shard);
    if rest > 0 { rest } else { 1 }
}
/// Numbers among which a new ring's descriptor is looked for: both programs make theirs before much else is open, and
/// test programs hold fewer.
pub const RING_FD_MAX: i32 = 4_095;
/// Events of local sockets that a shard takes from the kernel at once.
pub const READY_EVENTS_MAX: usize = 256;
/// Events of sockets that carry HTTP before what they woke has its turn. With more, browsers and sites sleep while
/// theirs pile up; with fewer, records of links are small.
pub const TURN_EXCHANGES_MAX: usize = 12;
/// Between two attempts to wait for them, where the kernel refuses one.
pub const READY_PAUSE: Duration = Duration::from_millis(10);
/// Waits for bytes of a local socket that need not wait before its task lets the others run.
pub const UNWAITED_MAX: u32 = 16;
/// Tasks that a shard runs before it asks its ring for what has completed meanwhile, where it has not waited before.
pub const TURNS_MAX: u32 = 64;
/// A stopping shard waits this long for its links' last reads and writes.
pub const STOP_MAX: Duration = Duration::from_secs(3);
/// … and this long for its tasks to end and the kernel to give back their buffers.
pub const END_MAX: Duration = Duration::from_secs(1);
/// A shard that had so many tasks at once gives back their memory when they are few again.
pub const GIVE_BACK_TASKS_MIN: usize = 1_024;
/// Members of one pool, each with its own links.
pub const MEMBERS_MAX: usize = 256;
/// Links of one member.
pub const LINKS_MAX: u16 = 64;
/// Times that one request moves to another member of its pool because its own was lost.
pub const MOVES_MAX: u32 = 8;
/// Handshakes that one shard of an endpoint has under way.
pub const HANDSHAKES_MAX: usize = 256;

// ── sc's control plane ────────────────────────────────────────────────────────────────────────────────────────

/// A configuration file: it is one `name: value` an option.
pub const CONFIG_FILE_BYTES_MAX: u64 = MIB as u64;
/// Sites that `--auth` may name.
pub const CREDENTIALS_MAX: usize = 1_000;
/// A user name and a password for a site, together.
pub const CREDENTIALS_BYTES_MAX: usize = 1_024;
/// User names and identifiers, which become parts of file names.
pub const NAME_BYTES_MAX: usize = 200;
/// Threads that carry traffic: beyond it rings and pools cost more than they carry.
pub const SHARDS_MAX: usize = 64;
/// Shards of `sc` unless told otherwise: a link fills one core only at several Gbit/s.
pub const SHARDS_DEFAULT_MAX: usize = 4;
/// The highest `--max-streams`.
pub const STREAMS_OPTION_MAX: usize = 1 << 20;
/// The highest `--memory-max`, in MiB: 1 TiB.
pub const MEMORY_OPTION_MIB_MAX: usize = 1 << 20;
/// Log lines that wait for the disk, or for who reads them; more are dropped and counted.
pub const LOG_QUEUE_LINES_MAX: usize = 4_096;
/// A log line; a longer one is cut.
pub const LOG_LINE_BYTES_MAX: usize = 16 * KIB;
/// Log lines that go into one write.
pub const LOG_WRITE_BYTES_MAX: usize = 64 * KIB;
/// The last log lines get this long to reach the disk, or who reads them.
pub const LOG_FLUSH_MAX: Duration = Duration::from_secs(2);
/// TCP and TLS of a REST call …
pub const REST_CONNECT_MAX: Duration = Duration::from_secs(10);
/// … and the whole call.
pub const REST_CALL_MAX: Duration = Duration::from_secs(20);
/// What of a REST error text is shown.
pub const REST_ERROR_CHARS_MAX: usize = 300;
/// From the request for a tunnel until it runs.
pub const RUNNING_MAX: Duration = Duration::from_secs(60);
/// From running until a request has gone through the whole path and back; the first dial is part of it.
pub const READY_MAX: Duration = Duration::from_secs(60);
/// The endpoint's key is not the one that REST names, at the start: a relaunched one is known to REST sooner.
pub const WRONG_KEY_MAX: Duration = Duration::from_secs(5);
/// The name of the endpoint's address.
pub const LOOKUP_MAX: Duration = Duration::from_secs(10);
/// `sc` reads its tunnel's state this often …
pub const STATE_INTERVAL: Duration = Duration::from_secs(5);
/// … and at most this often while no link is up.
pub const STATE_INTERVAL_DOWN: Duration = Duration::from_secs(1);
/// Dials meet another key than the one that REST named: REST is asked at once, then after this, doubling with jitter.
pub const WRONG_KEY_BACKOFF_MIN: Duration = Duration::from_millis(100);
pub const WRONG_KEY_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Heartbeats in the time after which the cloud calls a silent tunnel lost: two may get lost.
pub const HEARTBEATS_PER_LOSS: u32 = 3;
/// Without any link and without REST for this long the cloud has reaped the tunnel.
pub const LOST_AFTER: Duration = Duration::from_secs(90);
/// Streams that are left when [`DRAIN_MAX`], the time of jobs that still run when `sc` is to end, is over.
pub const CUT_AFTER: Duration = Duration::from_secs(2);
/// DELETE at the end …
pub const DELETE_MAX: Duration = Duration::from_secs(10);
/// … then the wait until the tunnel is gone …
pub const GONE_MAX: Duration = Duration::from_secs(30);
/// … and DELETE when the user does not wait.
pub const DELETE_NOW_MAX: Duration = Duration::from_secs(2);

// ── Front ─────────────────────────────────────────────────────────────────────────────────────────────────────

/// A ClientHello, however it is split.
pub const CLIENT_HELLO_BYTES_MAX: usize = 16 * KIB;
pub const CLIENT_HELLO_MAX: Duration = Duration::from_secs(5);
/// Connections whose ClientHello is not complete yet.
pub const CLIENT_HELLOS_PENDING_MAX: usize = 1_024;

// ── HTTP (ARCHITECTURE.md, The HTTP path) ────────────────────────────────────────────────────────────────────────────

/// Request line and header fields.
pub const HEAD_BYTES_MAX: usize = 64 * KIB;
pub const HEAD_FIELDS_MAX: usize = 128;
/// What rewriting may add to a request's head: a Host field that HTTP/1.0 did not send, a slash, a space.
pub const HEAD_GROWTH_BYTES_MAX: usize = KIB;
/// Request target, else 414.
pub const TARGET_BYTES_MAX: usize = 16 * KIB;
/// Method, else 501: the longest registered one has 17.
pub const METHOD_BYTES_MAX: usize = 32;
/// Host name: what the length byte of an OPEN can say, and DNS has no longer ones.
pub const HOST_BYTES_MAX: usize = 255;
/// Names that Connection lists: each field of a head is compared with each.
pub const CONNECTION_OPTIONS_MAX: usize = 32;
/// A browser's head must be complete, else 408.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// A browser's body may pause this long, else 408.
pub const BODY_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A browser that sends no more but waits for its answer is asked this often whether it is still there …
pub const BROWSER_ASKED: Duration = Duration::from_secs(2);
/// … and gone after this many questions without a reply: longer than an outage that resumes.
pub const BROWSER_SILENT_MAX: u32 = 30;
/// A keep-alive connection without a request is closed.
pub const KEEP_ALIVE_IDLE_MAX: Duration = Duration::from_secs(300);
/// One address of a site, unless told otherwise …
pub const DIAL_ADDRESS_DEFAULT: Duration = Duration::from_secs(10);
/// … and all of them: so many times as long.
pub const DIAL_ALL_TIMES: u32 = 3;
/// From a whole request to the first byte of the site's answer, unless told otherwise.
pub const FIRST_BYTE_DEFAULT: Duration = Duration::from_secs(600);
/// A stream on which nothing moves, unless told otherwise.
pub const IDLE_DEFAULT: Duration = Duration::from_secs(3_600);
/// These three hold up nobody but the test that asks for them: at most.
pub const SITE_TIME_MAX: Duration = Duration::from_secs(24 * 3_600);
/// The shortest time limit that can be set: below it a busy machine alone would reach it.
pub const TIME_LIMIT_MIN: Duration = Duration::from_millis(100);
/// Chunk-size line with its extensions.
pub const CHUNK_LINE_BYTES_MAX: usize = 4 * KIB;
/// Trailer section of a chunked body.
pub const TRAILER_BYTES_MAX: usize = 16 * KIB;
/// Characters that an error page shows of an address, and of a text.
pub const PAGE_TEXT_CHARS_MAX: usize = 512;

// ── Sites and browsers ────────────────────────────────────────────────────────────────────────────────────────

/// Threads that may wait in the system's resolver, which takes as long as it likes: a minute and more for a name whose
/// servers are silent. Each is a name; the names of a page that leads everywhere, and of several of them, do not stop the
/// rest. More would cost too many descriptors ([`FDS_LOOKUPS`]) of a small limit.
pub const LOOKUP_THREADS_MAX: usize = 32;
/// A thread that had nothing to do for so long ends.
pub const LOOKUP_THREAD_IDLE: Duration = Duration::from_secs(5);
/// Names that wait for such a thread, over all shards, and as many that wait for the one of /etc/hosts.
pub const LOOKUPS_PENDING_MAX: usize = 256;
/// What is read of /etc/hosts while all threads wait: lists of a million hosts that are to be nowhere are in use.
pub const HOSTS_FILE_BYTES_MAX: u64 = 64 * MIB as u64;
/// A look-up may take this long.
pub const LOOKUP_TIME_MAX: Duration = Duration::from_secs(10);
/// Replies on their way to one shard: all names that can be under way at once.
pub const LOOKUP_REPLIES_MAX: usize = 2 * LOOKUPS_PENDING_MAX + LOOKUP_THREADS_MAX;
/// Names that a shard remembers, and how long: found ones, and ones that were not.
pub const LOOKUP_CACHE_MAX: usize = 1_024;
pub const LOOKUP_MAX_AGE: Duration = Duration::from_secs(10);
pub const LOOKUP_FAILED_MAX_AGE: Duration = Duration::from_secs(2);
/// A failure that took so long is no answer but a name server's silence …
pub const LOOKUP_SILENCE_MIN: Duration = Duration::from_secs(2);
/// … and holds longer (RFC 8767 section 5, failure recheck timer): each attempt keeps a thread.
pub const LOOKUP_SILENT_MAX_AGE: Duration = Duration::from_secs(30);
/// Addresses that were found serve on this long if no answer replaces them: a name may have moved …
pub const LOOKUP_STALE_MAX: Duration = Duration::from_secs(300);
/// … and an answer is waited for this long first (RFC 8767 section 5, client response timer).
pub const LOOKUP_STALE_AFTER: Duration = Duration::from_millis(1_800);
/// Addresses of one name that are tried.
pub const ADDRESSES_PER_NAME_MAX: usize = 16;
/// The next address is tried beside the first after this long (RFC 8305 section 5).
pub const DIAL_STAGGER: Duration = Duration::from_millis(250);
/// Idle connections to sites that a shard keeps, in all and of one site.
pub const ORIGIN_POOL_MAX: usize = 512;
pub const ORIGIN_POOL_SITE_MAX: usize = 256;
/// So many make room when all places are taken.
pub const ORIGIN_POOL_CLOSED: usize = ORIGIN_POOL_MAX / 8;
/// How long they are kept: less than the idle time-outs that servers have.
pub const ORIGIN_IDLE_MAX: Duration = Duration::from_secs(15);
/// A request that cannot be repeated takes only a connection used this recently: common servers keep one for 5 s.
pub const ORIGIN_TRUST_MAX: Duration = Duration::from_secs(2);
/// How often connections that were kept too long are looked for.
pub const ORIGIN_SWEEP: Duration = Duration::from_secs(1);
/// While a site takes nothing of a request, the endpoint is looked at this often: it may have given up.
pub const PEER_LOOK: Duration = Duration::from_secs(5);
/// After a whole answer the peer's end of the stream is due at once; without it the stream is reset.
pub const SETTLE_MAX: Duration = Duration::from_secs(1);
/// Interim (1xx) answers before a final one.
pub const INTERIM_ANSWERS_MAX: usize = 64;
/// What a browser sends before it may (after CONNECT, after Upgrade, pipelined requests) is held this far.
pub const EARLY_BYTES_MAX: usize = 64 * KIB;
/// … and while the request waits for a link, this far: enough to see the browser's end behind most bodies.
pub const WAITING_EARLY_BYTES_MAX: usize = 16 * KIB;
/// Bytes of its own that a task queues for a full socket before it waits: about the base credit of a stream.
pub const OUTLET_OWN_BYTES: usize = 4 * KIB;
/// After an answer that leaves a request unread, this much of it is read and dropped, this long, so that the
/// browser reads the answer before it sees the connection reset.
pub const LINGER_BYTES_MAX: usize = 1024 * KIB;
pub const LINGER_MAX: Duration = Duration::from_secs(2);

// ── The endpoint's response cache ─────────────────────────────────────────────────────────────────────────────

/// All that it holds, unless told otherwise: bodies, heads, keys, tables, and bodies that are still arriving.
pub const CACHE_BYTES: usize = 64 * MIB;
/// One object gets at most this part of it: a video does not displace all scripts.
pub const CACHE_OBJECT_SHARE: usize = 8;
/// A stored head, also after 304s have added to it: with what is written in front it stays a head that every
/// browser reads.
pub const CACHE_HEAD_BYTES_MAX: usize = 32 * KIB;
/// An entity tag that a site may be asked with, and a date: both fit into what rewriting may add to a head.
pub const CACHE_ETAG_BYTES_MAX: usize = 512;
pub const CACHE_DATE_BYTES_MAX: usize = 64;
/// Answers of one URL that differ by Vary. `Vary: Cookie` makes one a session; the oldest goes.
pub const CACHE_VARIANTS_MAX: usize = 8;
/// Names that Vary lists: each is looked for in each request. More count as `*`.
pub const CACHE_VARY_NAMES_MAX: usize = 16;
/// Lists of field names in `no-cache="…"` and `private="…"`. More count as the directive without names.
pub const CACHE_NAME_LISTS_MAX: usize = 4;
/// Buffers that a stored body is made of, at most; the first is smaller where no length was announced …
pub const CACHE_CHUNK_BYTES_MAX: usize = 64 * KIB;
/// … and this small.
pub const CACHE_CHUNK_BYTES_MIN: usize = 4 * KIB;
/// Requests that wait for the answer to an equal one …
pub const CACHE_FOLLOWERS_MAX: usize = 256;
/// … and how long: the browser that it goes to may be slow, and then it paces all.
pub const CACHE_FOLLOW_MAX: Duration = Duration::from_secs(5);
/// Stale answers that a shard asks for anew in the background, at a time: further ones are asked for when they are
/// wanted next …
pub const CACHE_REFRESHES_MAX: usize = 32;
/// … and for how long one is waited for.
pub const CACHE_REFRESH_TIME_MAX: Duration = Duration::from_secs(60);
/// After an answer that nobody else may have, requests for the URL do not wait for each other.
pub const CACHE_PASS_TIME: Duration = Duration::from_secs(120);
/// Parts of the cache with a lock each …
pub const CACHE_PARTS: usize = 16;
/// … the URLs that each remembers for [`CACHE_PASS_TIME`] …
pub const CACHE_PASSES: usize = 256;
/// … and the last invalidations: what was asked for before all of these is dropped when it arrives, as is what one of them
/// is about.
pub const CACHE_INVALIDATIONS: usize = 256;
/// The longest freshness that is guessed from Last-Modified (RFC 9111 section 4.2.2).
pub const CACHE_HEURISTIC_MAX: Duration = Duration::from_secs(24 * 3_600);
/// A site that cannot be reached is stood in for this long after an answer became stale (RFC 9111 section 4.2.4), unless
/// the answer says `stale-if-error`: a tester is to see soon that the site is down.
pub const CACHE_UNREACHABLE_MAX: Duration = Duration::from_secs(60);

// ── SSL bump ──────────────────────────────────────────────────────────────────────────────────────────────────

/// Certificates that a site shows, all together: browsers' longest chains have a quarter of it. Each session that may be
/// resumed keeps them.
pub const SITE_CHAIN_BYTES_MAX: usize = 32 * KIB;
/// Names of a site's certificate that its report carries …
pub const SITE_NAMES_MAX: usize = 100;
/// … and their bytes: what a wrong name is shown with, so that the first ones do.
pub const SITE_NAMES_BYTES_MAX: usize = 4 * KIB;
/// Certificates whose judgement is remembered: a look-up takes a hundredth of the time.
pub const JUDGED_MAX: usize = 512;
/// A judgement, and a session with a site that is resumed, stand for the site's certificate this long at most.
pub const JUDGED_AGE_MAX: Duration = Duration::from_secs(600);
/// Sites (host, port, name) that TLS sessions are kept of, for resumption …
pub const SITE_SESSIONS_MAX: usize = 128;
/// … and the tickets of each (TLS 1.3), which are used once. Without one a handshake is a full one.
pub const SITE_TICKETS_MAX: usize = 4;
/// Leaves of an endpoint …
pub const LEAVES_MAX: usize = 1_024;
/// … each with the configuration of its handshake and the keys of its tickets.
const LEAF_BYTES: usize = 8 * KIB;
/// A good leaf is valid from so long ago: clocks of browsers may be behind …
pub const LEAF_BACKDATE: Duration = Duration::from_secs(24 * 3_600);
/// … and for so long: shorter than any limit that browsers set (398 days), longer than tunnels live …
pub const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// … and after this long the next one is made.
pub const LEAF_RENEWED: Duration = Duration::from_secs(15 * 24 * 3_600);
/// Reports about sites that an endpoint keeps …
pub const REPORTS_MAX: usize = 1_024;
/// … and how long each stands for its site: the connections of a page and of the next ones go without a handshake first.
/// Nothing wrong comes of an old one, because `sc` compares before each request; but a certificate that was mended is to
/// be seen soon.
pub const REPORT_FRESH_MAX: Duration = Duration::from_secs(60);
/// Hosts of which an endpoint has learnt that they cannot be bumped, or counts refusals …
pub const OPAQUE_HOSTS_MAX: usize = 1_024;
/// … and how long it holds to that: a site may be mended.
pub const OPAQUE_TIME: Duration = Duration::from_secs(600);
/// An app that pins its certificate refuses our leaf so many times …
pub const PINNED_REFUSALS: usize = 3;
/// … within this time: one alert may be a tester's mistake …
pub const PINNED_SPAN: Duration = Duration::from_secs(600);
/// … and does not count so soon after one that did: a browser opens several connections at once.
pub const PINNED_APART: Duration = Duration::from_secs(1);
/// Parts with a lock each that these tables have.
pub const BUMP_PARTS: usize = 16;

// ── Memory of a process ───────────────────────────────────────────────────────────────────────────────────────

/// What `sc` promises to stay within at four shards and four links.
pub const CLIENT_MEMORY_BYTES: usize = 1_536 * MIB;
/// What an endpoint of one shard promises to stay within.
pub const ENDPOINT_MEMORY_BYTES: usize = 896 * MIB;
/// Runtime, scratch buffers and tables of a shard.
const SHARD_BYTES: usize = 8 * MIB;
/// Reserve, read buffer and send buffer of a link.
const LINK_BYTES: usize = CONTROL_RESERVE_BYTES + LINK_READ_BYTES + 2 * LINK_WRITE_BYTES_MAX;
/// Heads that wait while no link is up, together, and what came behind them.
const WAITING_HEADS_BYTES: usize = 16 * MIB + WAITING_HEADS_MAX * WAITING_EARLY_BYTES_MAX;
/// Names of a site's certificate, each in a buffer of its own.
const SITE_BYTES: usize = SITE_NAMES_BYTES_MAX + SITE_NAMES_MAX * 48;
/// TLS with a browser or a site: its keys, and records on their way.
const TLS_BYTES: usize = 32 * KIB;
/// A host that is left alone, with its name.
const OPAQUE_HOST_BYTES: usize = 256;
/// What SSL bump keeps of sites at `sc` …
const CLIENT_BUMP_BYTES: usize = JUDGED_MAX * SITE_BYTES
    + SITE_SESSIONS_MAX * SITE_TICKETS_MAX * (SITE_CHAIN_BYTES_MAX + KIB)
    + OPAQUE_HOSTS_MAX * OPAQUE_HOST_BYTES;
/// … and at an endpoint.
const ENDPOINT_BUMP_BYTES: usize =
    REPORTS_MAX * SITE_BYTES + LEAVES_MAX * LEAF_BYTES + OPAQUE_HOSTS_MAX * OPAQUE_HOST_BYTES;
/// Code, allocator, control thread.
const BASE_BYTES: usize = 32 * MIB;

/// The two budgets of a shard that yield to `--memory-max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pools {
    /// Credit that was advertised, above the bases of streams.
    pub receive_bytes: usize,
    /// Bytes retained and queued for sending.
    pub send_bytes: usize,
}

/// Of `sc`, where memory allows it …
const CLIENT_POOLS: Pools = Pools {
    receive_bytes: CLIENT_POOL_BYTES,
    send_bytes: CLIENT_TX_BYTES,
};
/// … and of an endpoint.
const ENDPOINT_POOLS: Pools = Pools {
    receive_bytes: ENDPOINT_POOL_BYTES,
    send_bytes: ENDPOINT_TX_BYTES,
};
/// Neither is ever smaller: a link with a round trip of 20 ms still carries 50 MB/s.
pub const POOL_BYTES_MIN: usize = 2 * MIB;

/// The most that a process holds: half as much again as its budgets, because a buffer is charged whole, and the rest.
/// `peer_streams` and `own_streams`: limits of streams opened by the other side and by this one.
const fn memory_bytes(peer_streams: usize, own_streams: usize, pools: Pools, shards: usize, links: usize) -> usize {
    let bases = peer_streams * BASE_CREDIT_PEER_BYTES + own_streams * BASE_CREDIT_OWN_BYTES;
    let budgets = bases + shards * (pools.receive_bytes + pools.send_bytes);
    budgets / 2 * 3 + shards * SHARD_BYTES + links * LINK_BYTES + WAITING_HEADS_BYTES + BASE_BYTES
}

/// What `sc` holds at most, unless it is told to do with less.
pub const fn client_memory_bytes(peer_streams: usize, shards: usize, links: usize) -> usize {
    let fixed = CLIENT_BUMP_BYTES + peer_streams * TLS_BYTES;
    memory_bytes(peer_streams, CLIENT_STREAMS_MAX, CLIENT_POOLS, shards, links) + fixed
}

/// As [`client_memory_bytes`], for an endpoint with its cache and what goes past the tunnel. It is not told how many links
/// it will have: it is reckoned with those that a member may have, whoever reckons.
pub const fn endpoint_memory_bytes(own_streams: usize, shards: usize) -> usize {
    let direct = shards * DIRECT_STREAMS_MAX * 2 * PIPE_BYTES;
    let fixed = CACHE_BYTES + ENDPOINT_BUMP_BYTES + own_streams * TLS_BYTES;
    let links = LINKS_MAX as usize;
    memory_bytes(CLIENT_STREAMS_MAX, own_streams, ENDPOINT_POOLS, shards, links) + direct / 2 * 3 + fixed
}

/// A shard's pools with which `sc` stays within `memory` bytes.
///
/// # Errors
/// How much it needs at least.
pub const fn client_pools(memory: usize, peer_streams: usize, shards: usize, links: usize) -> Result<Pools, usize> {
    shrunk(
        CLIENT_POOLS,
        memory,
        client_memory_bytes(peer_streams, shards, links),
        shards,
    )
}

/// As [`client_pools`], for an endpoint.
pub const fn endpoint_pools(memory: usize, own_streams: usize, shards: usize) -> Result<Pools, usize> {
    shrunk(
        ENDPOINT_POOLS,
        memory,
        endpoint_memory_bytes(own_streams, shards),
        shards,
    )
}

/// `wanted`, of which each shard needs `needed` bytes of memory in all, as far as `memory` allows, both in proportion.
const fn shrunk(wanted: Pools, memory: usize, needed: usize, shards: usize) -> Result<Pools, usize> {
    if needed <= memory {
        return Ok(wanted);
    }
    let whole = wanted.receive_bytes + wanted.send_bytes;
    let smallest = if wanted.receive_bytes < wanted.send_bytes {
        wanted.receive_bytes
    } else {
        wanted.send_bytes
    };
    let least = (POOL_BYTES_MIN as u128 * whole as u128).div_ceil(smallest as u128) as usize;
    let least_needed = needed - shards * (whole - least) / 2 * 3;
    if memory < least_needed {
        return Err(least_needed);
    }
    let left = whole - (needed - memory).div_ceil(3 * shards) * 2;
    let receive_bytes = (left as u128 * wanted.receive_bytes as u128 / whole as u128) as usize;
    Ok(Pools {
        receive_bytes,
        send_bytes: left - receive_bytes,
    })
}

const _: () =
    assert!(client_memory_bytes(ENDPOINT_STREAMS_MAX, SHARDS_DEFAULT_MAX, SHARDS_DEFAULT_MAX) <= CLIENT_MEMORY_BYTES);
const _: () = assert!(endpoint_memory_bytes(ENDPOINT_STREAMS_MAX, 1) <= ENDPOINT_MEMORY_BYTES);
const _: () = assert!(LOOKUP_STALE_AFTER.as_millis() < LOOKUP_TIME_MAX.as_millis());
const _: () = assert!(FRAME_PAYLOAD_BYTES_MAX == 16_372);
const _: () = assert!(RECORD_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(RECORD_CIPHERTEXT_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(PACKED_FRAME_BYTES_MAX < RECORD_BYTES_MAX);
const _: () = assert!(OUTAGE_INVISIBLE.as_secs() == 30);
const _: () = assert!(READY_MAX.as_secs() > FIRST_DIAL_MAX.as_secs());
const _: () = assert!(LOST_AFTER.as_secs() > OUTAGE_INVISIBLE.as_secs());
// Its other TLVs and each name's length.
const _: () = assert!(SITE_NAMES_BYTES_MAX + SITE_NAMES_MAX + 128 <= FRAME_PAYLOAD_BYTES_MAX);
const _: () = assert!(LEAF_RENEWED.as_secs() < LEAF_LIFE.as_secs());
const _: () = assert!(BASE_CREDIT_OWN_BYTES <= FIRST_GRANT_BYTES);
const _: () = assert!(FIRST_GRANT_BYTES <= WINDOW_BYTES_MAX);
const _: () = assert!(ENDPOINT_POOL_BYTES / 2 >= WINDOW_BYTES_MAX);
const _: () = assert!(CLIENT_TX_BYTES / LINK_SHARE.1 * LINK_SHARE.0 > WINDOW_BYTES_MAX);
const _: () = assert!(TARGET_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(HOST_BYTES_MAX + 16 <= HEAD_GROWTH_BYTES_MAX);
const _: () = assert!(HOST_BYTES_MAX + 16 + CACHE_ETAG_BYTES_MAX + CACHE_DATE_BYTES_MAX + 64 <= HEAD_GROWTH_BYTES_MAX);
const _: () = assert!(2 * CACHE_HEAD_BYTES_MAX <= HEAD_BYTES_MAX);
const _: () = assert!(CACHE_BYTES / CACHE_OBJECT_SHARE > CACHE_HEAD_BYTES_MAX + TARGET_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_small_limit_of_descriptors_is_left_for_connections() {
        assert!(2 * connections_max(1_024 - FDS_LOOKUPS, 2) >= 512);
    }

    #[test]
    fn pools_shrink_with_memory_down_to_the_least() {
        for (shards, links) in [(1, 1), (4, 64), (64, 64)] {
            let full = client_memory_bytes(512, shards, links);
            assert_eq!(client_pools(full, 512, shards, links), Ok(CLIENT_POOLS));
            let least = client_pools(0, 512, shards, links).unwrap_err();
            assert_eq!(client_pools(least - 1, 512, shards, links), Err(least));
            let mut last = 0;
            for memory in [least, least + 1, (least + full) / 2, full - 1] {
                let pools = client_pools(memory, 512, shards, links).unwrap();
                let held =
                    memory_bytes(512, CLIENT_STREAMS_MAX, pools, shards, links) + CLIENT_BUMP_BYTES + 512 * TLS_BYTES;
                assert!(
                    held <= memory && held + 16 * shards * MIB > memory,
                    "{held} of {memory}"
                );
                assert!(pools.receive_bytes >= POOL_BYTES_MIN && pools.send_bytes >= POOL_BYTES_MIN);
                assert!(pools.receive_bytes >= last && pools.receive_bytes < CLIENT_POOLS.receive_bytes);
                last = pools.receive_bytes;
            }
        }
        let least = endpoint_pools(0, 512, 1).unwrap_err();
        assert_eq!(
            endpoint_pools(least, 512, 1),
            Ok(Pools {
                receive_bytes: 2 * POOL_BYTES_MIN,
                send_bytes: POOL_BYTES_MIN,
            })
        );
    }
}
