//! Planted faults: each breaks one rule of the multiplex, so that the simulator can show that it would notice.
//! Only in builds with the feature `mutants`; everywhere else `planted` is a constant `false`.

/// Every fault that can be planted, by name.
pub const ALL: &[&str] = &[
    "replay-one-too-few",
    "replay-from-last-ack",
    "count-hello",
    "accept-old-epoch",
    "received-before-old-read",
    "skip-tx-budget",
    "skip-rx-budget",
    "drop-fin-at-cut",
    "fin-before-data",
    "replay-updated-credit",
    "hello-restarts-window",
    "ping-out-when-written",
    "discard-before-fin",
    "fresh-received-not-zero",
    "partial-frame-dropped",
    "undelivered-dropped-at-end",
    "unused-credit-kept",
    "credit-during-recall",
    "return-ignores-queue",
    "expire-during-hello",
    "expire-during-cut-over",
    "settings-ack-overtakes",
    "goaway-serves-all",
    "refusals-unbounded",
    "new-before-replay",
    "ack-without-release",
    "refill-at-once",
    "refill-when-empty",
    "growth-mark-stays",
    "never-recall",
    "stream-takes-all",
    "link-takes-all",
    "header-not-charged",
    "skip-stream-limit",
    "drained-resumes",
    "finish-before-ack",
    "no-first-settings-ack",
    "reset-before-fin",
    "pong-is-no-progress",
];

#[cfg(feature = "mutants")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// Plants one fault on this thread, or none.
///
/// # Panics
/// If no fault has that name: a run that plants nothing would prove nothing.
#[cfg(feature = "mutants")]
pub fn activate(name: Option<&'static str>) {
    assert!(
        name.is_none_or(|n| ALL.contains(&n)),
        "no planted fault is called {name:?}"
    );
    ACTIVE.set(name);
}

/// Whether this fault is planted here.
#[cfg(feature = "mutants")]
pub(super) fn planted(name: &str) -> bool {
    ACTIVE.get() == Some(name)
}

/// Whether this fault is planted here: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(super) const fn planted(_: &str) -> bool {
    false
}
