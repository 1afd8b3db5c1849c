//! Stand-in: the role of `sc` without links.

use crate::endpoint::{Driver, Event};
use crate::error::Error;
use crate::settings::Settings;
use crate::stats::Report;
use crate::tls::{Fingerprint, Identity};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

pub struct ClientConfig {
    pub shards: usize,
    pub links: u16,
    pub cloud: SocketAddr,
    pub server_name: String,
    pub fingerprint: Fingerprint,
    pub identity: Arc<Identity>,
    pub settings: Arc<Settings>,
    pub driver: Driver,
    pub denied: Vec<SocketAddr>,
    pub max_streams: usize,
}

pub struct Client {
    wake: OwnedFd,
    events: crossbeam::channel::Receiver<Event>,
    driver: Driver,
}

pub fn start(config: ClientConfig) -> Result<Client, Error> {
    let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK)
        .map_err(|e| Error::Io("eventfd", e.into()))?;
    Ok(Client {
        wake,
        events: crossbeam::channel::never(),
        driver: config.driver,
    })
}

impl Client {
    pub fn set_cloud(&self, _cloud: SocketAddr, _fingerprint: Fingerprint) {}
    pub fn events(&self) -> &crossbeam::channel::Receiver<Event> {
        &self.events
    }
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
    pub fn report(&self) -> Report {
        Report::default()
    }
    pub fn drain(&self) {}
    pub fn stop(self) {}
    pub fn driver(&self) -> Driver {
        self.driver
    }
}
