//! `sc-cloud endpoint`: the process that carries one tunnel. It gets every socket from the broker, makes its own key,
//! and never creates, accepts or dials anything once its shards run.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use dataplane::endpoint::{self, Driver, Endpoint, EndpointConfig, Event, Level, Member};
use dataplane::limits::SETTINGS_BYTES_MAX;
use dataplane::settings::Settings;
use dataplane::tls::{Fingerprint, Identity};
use rustix::net::{SocketType, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::limits::{EVENTS_PER_TURN, ORPHANED_MAX};
use super::messages::{self, FromEndpoint, ToEndpoint};
use super::seqpacket::Seqpacket;
use crate::api::TunnelRequest;
use crate::runtime::{Runtime, watch};

/// Runs the endpoint whose control socket is standard input, to its end.
///
/// # Errors
/// A sentence for the file that the launcher keeps of standard error.
pub fn run() -> Result<(), String> {
    let control = control().map_err(|_| "this command is started by `sc-cloud serve` only".to_owned())?;
    // The process is called `exe` otherwise, after the link that started it.
    let _ = rustix::thread::set_name(c"sc-endpoint");
    let runtime = Runtime::epoll().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let control = Seqpacket::new(control).map_err(|e| e.to_string())?;
        let endpoint = start(&control).await?;
        serve(&control, &endpoint).await
    })
}

fn control() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    if sockopt::socket_type(&stdin)? != SocketType::SEQPACKET {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    stdin.as_fd().try_clone_to_owned()
}

/// Waits for the configuration, starts the shards and tells the broker the key.
async fn start(control: &Seqpacket) -> Result<Endpoint, String> {
    let mut rules = Vec::new();
    loop {
        let message = messages::receive(control).await.map_err(|e| e.to_string())?;
        let Some((message, browsers)) = message else {
            return Err("the broker went away before it said anything".into());
        };
        match message {
            ToEndpoint::Rules { part } => {
                rules.extend(messages::decode(&part).map_err(|e| e.to_string())?);
                if rules.len() > SETTINGS_BYTES_MAX {
                    return Err("the rules are too long".into());
                }
            }
            ToEndpoint::Start {
                shards,
                driver,
                max_streams,
                version,
                ..
            } => {
                let identity = Arc::new(Identity::generate().map_err(|e| e.to_string())?);
                let fingerprint = identity.fingerprint().to_string();
                let config = EndpointConfig {
                    shards,
                    identity,
                    settings: Arc::new(Settings { version, json: rules }),
                    driver: driver_named(&driver)?,
                    max_streams,
                    browsers,
                };
                let endpoint = endpoint::start(config).map_err(|e| e.to_string())?;
                let driver = format!("{:?}", endpoint.driver());
                let ready = FromEndpoint::Ready { fingerprint, driver };
                messages::send(control, &ready, &[]).await.map_err(|e| e.to_string())?;
                return Ok(endpoint);
            }
            _ => return Err("the broker spoke out of turn".into()),
        }
    }
}

fn driver_named(name: &str) -> Result<Driver, String> {
    match name {
        "auto" => Ok(Driver::Auto),
        "io_uring" => Ok(Driver::IoUring),
        "epoll" => Ok(Driver::Epoll),
        _ => Err(format!("no such driver: {name}")),
    }
}

/// Passes messages and events on until the endpoint has nothing left to do.
async fn serve(control: &Seqpacket, endpoint: &Endpoint) -> Result<(), String> {
    let wake = endpoint.wake_fd().try_clone_to_owned().map_err(|e| e.to_string())?;
    let wake = watch(wake, Interest::READABLE).map_err(|e| e.to_string())?;
    let mut orphaned: Option<tokio::time::Instant> = None;
    loop {
        tokio::select! {
            message = messages::receive(control), if orphaned.is_none() => match message {
                Ok(Some((message, fds))) => obey(control, endpoint, message, fds).await,
                Ok(None) | Err(_) => {
                    // A new broker cannot adopt this process: what is open ends well, then it leaves.
                    endpoint.drain();
                    orphaned = Some(tokio::time::Instant::now() + ORPHANED_MAX);
                }
            },
            () = awake(&wake) => {
                if report(control, endpoint, orphaned.is_some()).await? {
                    return Ok(());
                }
            }
            () = tokio::time::sleep_until(orphaned.unwrap_or_else(tokio::time::Instant::now)), if orphaned.is_some() => {
                return Ok(());
            }
        }
    }
}

/// Until the shards have something to say.
async fn awake(wake: &AsyncFd<OwnedFd>) {
    loop {
        let Ok(mut guard) = wake.readable().await else {
            return;
        };
        let mut count = [0u8; 8];
        let read = guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut count)?));
        if !matches!(read, Err(_would_block)) {
            return;
        }
    }
}

async fn obey(control: &Seqpacket, endpoint: &Endpoint, message: ToEndpoint, mut fds: Vec<OwnedFd>) {
    match message {
        ToEndpoint::Attach { fingerprint, index } => {
            if let Some((id, fingerprint)) = member(&fingerprint) {
                endpoint.attach(Member { id, fingerprint, index });
            }
        }
        ToEndpoint::Link {
            fingerprint,
            link,
            first,
        } => {
            if let (Some((id, _)), Some(fd), Ok(first)) = (member(&fingerprint), fds.pop(), messages::decode(&first)) {
                endpoint.link(id, link, fd, first);
            }
        }
        ToEndpoint::Drain => endpoint.drain(),
        ToEndpoint::Report => {
            let counted = endpoint.report();
            let report = FromEndpoint::Report {
                requests: counted.requests,
                streams: counted.streams_open,
            };
            // A broker that is gone shows at the next receive.
            let _ = messages::send(control, &report, &[]).await;
        }
        // Only at the start.
        ToEndpoint::Rules { .. } | ToEndpoint::Start { .. } => {}
    }
}

/// A member's id is the first half of its fingerprint.
fn member(fingerprint: &str) -> Option<([u8; 16], Fingerprint)> {
    let bytes = crate::secret::unhex::<32>(fingerprint)?;
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[..16]);
    Some((id, fingerprint.parse().ok()?))
}

/// Passes events on. True once the endpoint has drained.
async fn report(control: &Seqpacket, endpoint: &Endpoint, orphaned: bool) -> Result<bool, String> {
    let mut turn = 0;
    while let Ok(event) = endpoint.events().try_recv() {
        let message = match event {
            Event::Drained => {
                if !orphaned {
                    // It sees the socket close next, whether it got this or not.
                    let _ = messages::send(control, &FromEndpoint::Drained, &[]).await;
                }
                return Ok(true);
            }
            Event::Settings { version, json, .. } => {
                reload(endpoint, version, json);
                continue;
            }
            Event::LinkUp { link, .. } => FromEndpoint::LinkUp { link },
            Event::LinkDown { link, reason, .. } => FromEndpoint::LinkDown {
                link,
                reason: messages::clean(&reason),
            },
            Event::Log { level, text } => FromEndpoint::Log {
                level: level_name(level).to_owned(),
                text: messages::clean(&text),
            },
            Event::Failed(text) => {
                let text = messages::clean(&text);
                let _ = messages::send(control, &FromEndpoint::Failed { text: text.clone() }, &[]).await;
                return Err(text);
            }
            // Events of the other role.
            Event::DialFailed { .. } | Event::SettingsAck { .. } => continue,
        };
        if !orphaned {
            // A broker that is gone shows at the next receive.
            let _ = messages::send(control, &message, &[]).await;
        }
        turn += 1;
        if turn % EVENTS_PER_TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(false)
}

/// Parses whole and switches whole, or refuses whole with the reason.
fn reload(endpoint: &Endpoint, version: u32, json: Vec<u8>) {
    let checked = serde_json::from_slice::<TunnelRequest>(&json)
        .map_err(|e| e.to_string())
        .and_then(|rules| rules.check());
    match checked {
        Ok(()) => endpoint.reload(Arc::new(Settings { version, json })),
        Err(text) => endpoint.refuse(version, &text),
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    }
}
