//! Mutated requests through the proxy to servers that others wrote: what they count, body bytes included, must be what
//! we count. A request that only one side sees is how requests are smuggled.
//!
//! Each server names to its client the request that it counted, by a hash of method, target and body, and keeps a list.
//! Our own account is the proxy's parser over the bytes that the browser sent. `SEED=N` sends message N alone.

mod account;
mod browser;
mod chunks;
mod gateway;
mod messages;
mod reading;
mod servers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use account::Disagreement;
use browser::{Case, Route, Tally};
use reading::Way;
use servers::Server;
use tempfile::TempDir;
use tests::both_drivers;
use tests::cloud::{Cloud, Driver};
use tests::is_long;

both_drivers![what_sites_count_is_what_we_count];

/// Browsers of each server; the last one is inside a CONNECT.
const LANES: u64 = 4;

/// Printed in full; of further ones only the number.
const SHOWN: usize = 10;

/// Of one driver: both send 100,000, in the long form 1,000,000.
fn messages() -> u64 {
    if is_long() { 500_000 } else { 50_000 }
}

/// The servers, and where their browsers send what is for them.
struct World {
    _folder: TempDir,
    servers: Vec<Server>,
    seed: u64,
    /// None: straight to each server.
    proxy: Option<SocketAddr>,
    numbers: Range<u64>,
}

impl World {
    fn new(seed: u64, messages: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let only = std::env::var("SEED")
            .ok()
            .map(|text| text.parse::<u64>().expect("SEED is a number"));
        Self {
            servers: servers::start(folder.path()),
            _folder: folder,
            seed,
            proxy: None,
            numbers: only.map_or(0..messages, |number| number..number + 1),
        }
    }

    /// The server of a message, and which of its browsers sends it.
    fn place(&self, number: u64) -> (usize, u64) {
        let servers = self.servers.len() as u64;
        ((number % servers) as usize, number / servers % LANES)
    }

    fn route(&self, (server, lane): (usize, u64)) -> Route {
        let address = self.servers[server].address;
        Route {
            seed: self.seed,
            site: address.to_string(),
            address: self.proxy.unwrap_or(address),
            way: match self.proxy {
                Some(_) if lane < LANES - 1 => Way::Absolute,
                _ => Way::Origin,
            },
            through_proxy: self.proxy.is_some(),
            folds_methods: self.servers[server].folds_methods,
            patience: Duration::from_millis(if self.proxy.is_some() { 20_000 } else { 200 }),
        }
    }

    /// Sends all messages, with all browsers at the same time; what those of each server have seen.
    fn browse(&self) -> Vec<Tally> {
        thread::scope(|threads| {
            let places = (0..self.servers.len()).flat_map(|server| (0..LANES).map(move |lane| (server, lane)));
            let browsers = places.map(|place| {
                let numbers = self.numbers.clone().filter(move |number| self.place(*number) == place);
                threads.spawn(move || (place, browser::run(&self.route(place), numbers)))
            });
            let mut tallies: Vec<Tally> = self.servers.iter().map(|_| Tally::default()).collect();
            for browser in browsers.collect::<Vec<_>>() {
                let ((server, _), tally) = browser.join().unwrap();
                tallies[server].merge(tally);
            }
            tallies
        })
    }

    /// The message of this number, for people.
    fn show(&self, number: u64) -> String {
        Case::new(&self.route(self.place(number)), number)
            .bytes
            .escape_ascii()
            .to_string()
    }

    /// Ends a server and compares its list with our account; what is wrong is printed.
    fn disagreements(&mut self, index: usize, tally: &mut Tally) -> usize {
        let records = self.servers[index].stop();
        let name = self.servers[index].name;
        let account = std::mem::take(&mut tally.account);
        println!(
            "{name}: {} messages, {} forwarded; {} requests answered, {} refused by it, {} lost; it counts {}; {:?}",
            tally.messages,
            tally.forwarded,
            account.answered,
            account.refused,
            account.lost,
            records.len(),
            tally.pages,
        );
        let mut found = std::mem::take(&mut tally.disagreements);
        found.extend(account.compare(&records));
        for Disagreement { number, what } in found.iter().take(SHOWN) {
            match number {
                Some(number) => println!("  SEED={number}: {what}\n    {}", self.show(*number)),
                None => println!("  {what}"),
            }
        }
        found.len()
    }
}

fn what_sites_count_is_what_we_count(driver: Driver) {
    let cloud = Cloud::start(driver);
    let tunnel = cloud.start_tunnel_with(&["--shards", "1", "--no-proxy-caching"]);
    let mut world = World {
        proxy: Some(tunnel.proxy),
        ..World::new(driver as u64 + 1, messages())
    };
    let begun = Instant::now();
    let mut tallies = world.browse();
    let took = begun.elapsed();
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let (sent, forwarded, requests) = (sum(|t| t.messages), sum(|t| t.forwarded), sum(|t| t.begun));
    let counted = cloud.tunnel(&tunnel.id)["culvert"]["requests"].as_u64();
    println!("{sent} messages in {took:?}, {forwarded} of them forwarded; {requests} requests, {counted:?} counted");
    let mut found = BTreeMap::new();
    for (index, tally) in tallies.iter_mut().enumerate() {
        match world.disagreements(index, tally) {
            0 => {}
            several => drop(found.insert(world.servers[index].name, several)),
        }
    }
    assert!(
        found.is_empty(),
        "disagreements: {found:?}; SEED=N sends message N alone"
    );
    assert_eq!(counted, Some(requests));
    if world.numbers.end - world.numbers.start > 1 {
        assert!(sent == messages() && forwarded * 100 >= sent * 30);
        let is_spread = |tally: &Tally| tally.forwarded * 100 >= tally.messages * 20;
        assert!(tallies.iter().all(is_spread), "a server got too little");
    }
    tunnel.stop();
}

/// The test can fail: a proxy that passes on what it is sent is found out by each server.
#[test]
fn whoever_forwards_everything_is_found_out() {
    let mut world = World::new(1, 2_000);
    let mut tallies = world.browse();
    for (index, tally) in tallies.iter_mut().enumerate() {
        let found = world.disagreements(index, tally);
        assert!(found > 0, "{} counts what we count", world.servers[index].name);
    }
}
