//! Validated immutable input from the control plane: one whole `Settings` at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::limits;
use crate::rules::Rules;

/// The rules of a tunnel under one version (ARCHITECTURE.md, Settings). Version 1 is that of the REST request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Rises with each reload; named by every OPEN.
    pub version: u32,
    /// Canonical JSON (sorted keys, no white space) of the rules, as SETTINGS carries it.
    pub json: Bytes,
    /// Compiled from `json`, where this side enforces them.
    pub rules: Arc<Rules>,
    /// Of this process alone: the other side has its own.
    pub times: Times,
}

impl Settings {
    /// A copy for one thread alone. What a search of `-F` needs is kept in eight places of a set: of threads that meet at one
    /// all but the first would make it anew. Lists and texts are shared.
    pub fn own(&self) -> Arc<Self> {
        Arc::new(Self {
            rules: Arc::new(Rules::clone(&self.rules)),
            ..self.clone()
        })
    }
}

/// Time limits that the operator may set. The two sides need not agree on any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// `sc`: one address of a site must accept a connection; all addresses of its name together get
    /// [`limits::DIAL_ALL_TIMES`] as long.
    pub dial: Duration,
    /// `sc`: from a whole request to the first byte of the site's answer.
    pub first_byte: Duration,
    /// No byte in either direction of a stream. At the endpoint: a browser that takes nothing.
    pub idle: Duration,
    /// Endpoint: a browser's head must be complete, from its first byte on.
    pub browser_head: Duration,
    /// Endpoint: a browser may pause within its body.
    pub browser_body: Duration,
    /// Endpoint: a browser's connection without a request is kept.
    pub browser_idle: Duration,
    /// A session's streams outlive an outage this long, and requests wait for a link as long. Each side counts from
    /// its own first loss; the side with the shorter one ends the session for both.
    pub resume_window: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            dial: limits::DIAL_ADDRESS_DEFAULT,
            first_byte: limits::FIRST_BYTE_DEFAULT,
            idle: limits::IDLE_DEFAULT,
            browser_head: limits::HEAD_TIME_MAX,
            browser_body: limits::BODY_PAUSE_MAX,
            browser_idle: limits::KEEP_ALIVE_IDLE_MAX,
            resume_window: limits::RESUME_WINDOW,
        }
    }
}
