//! Mutated requests through the proxy to servers that others wrote: what they count, body bytes included, must be what
//! we count. A request that only one side sees is how requests are smuggled.
//!
//! Each server names to its client the request that it counted, by a hash of method, target and body, and keeps a list.
//! What we count is held against it twice. Request by request it is the account of the proxy's parser over the bytes
//! that the browser sent: each answer names the request that was sent, the server's list has each that it has answered,
//! and nothing that is not in the account; so bodies are equal too, since the hash is of them. In sum it is the tunnel's
//! own count of requests (REST): that of the lists, and of those that a server has refused, that came to no end, or that
//! got a page of ours or a cut for an answer. The tunnel counts no bytes of bodies. `SEED=N` sends message N alone.
//!
//! Some are sent in TLS: it ends at the endpoint, and `sc` speaks TLS to a front of the server.

mod account;
mod browser;
mod carrier;
mod chunks;
mod front;
mod gateway;
mod messages;
mod reading;
mod servers;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use account::{Account, Amount, Disagreement, Record};
use browser::{Case, Route, Tally};
use reading::Way;
use rustls::ClientConfig;
use servers::Server;
use tempfile::TempDir;
use tests::certificate::{self, Company};
use tests::cloud::{Cloud, Driver};
use tests::{both_drivers, is_long, tls};

both_drivers![what_sites_count_is_what_we_count];

/// Browsers of each server; the last one but one is inside a CONNECT, and the last one in TLS inside it.
const LANES: u64 = 5;

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
    /// TLS in front of each server, for who goes through the proxy, and what trusts the proxy's own.
    fronts: Vec<SocketAddr>,
    trust: Arc<ClientConfig>,
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
            fronts: Vec::new(),
            trust: certificate::client_config(&[]),
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
        let way = match (self.proxy, LANES - lane) {
            (Some(_), 1) => Way::Secured,
            (None, _) | (Some(_), 2) => Way::Origin,
            (Some(_), _) => Way::Absolute,
        };
        let site = if way == Way::Secured {
            self.fronts[server]
        } else {
            address
        };
        Route {
            seed: self.seed,
            site: site.to_string(),
            address: self.proxy.unwrap_or(address),
            way,
            trust: self.trust.clone(),
            through_proxy: self.proxy.is_some(),
            folds_methods: self.servers[server].folds_methods,
            patience: Duration::from_millis(if self.proxy.is_some() { 20_000 } else { 200 }),
        }
    }

    /// Sends all messages, with all browsers at the same time; what those of each server have seen, by lane.
    fn browse(&self) -> Vec<Vec<Tally>> {
        thread::scope(|threads| {
            let places = (0..self.servers.len()).flat_map(|server| (0..LANES).map(move |lane| (server, lane)));
            let browsers = places.map(|place| {
                let numbers = self.numbers.clone().filter(move |number| self.place(*number) == place);
                threads.spawn(move || browser::run(&self.route(place), numbers))
            });
            let mut tallies = browsers
                .collect::<Vec<_>>()
                .into_iter()
                .map(|browser| browser.join().unwrap());
            let lanes = self
                .servers
                .iter()
                .map(|_| tallies.by_ref().take(LANES as usize).collect());
            lanes.collect()
        })
    }

    /// The message of this number, for people.
    fn show(&self, number: u64) -> String {
        Case::new(&self.route(self.place(number)), number)
            .bytes
            .escape_ascii()
            .to_string()
    }

    /// Ends a server, adds it to the sum, and compares its list with our account; what is wrong is printed.
    fn disagreements(&mut self, index: usize, tally: &mut Tally, sum: &mut Sum) -> usize {
        let records = self.servers[index].stop();
        let name = self.servers[index].name;
        let account = std::mem::take(&mut tally.account);
        sum.add(&records, &account, tally.unfinished);
        println!(
            "{name}: {} messages, {} forwarded; {:?} answered, {} refused by it, {:?} lost; it counts {}; {:?}",
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

/// What all servers have counted, and what they have not of the requests that were begun at them.
#[derive(Debug, Default)]
struct Sum {
    listed: Amount,
    answered: Amount,
    /// Those that may be in a list …
    lost: Amount,
    /// … and those that are in none.
    refused: u64,
    unfinished: u64,
}

impl Sum {
    fn add(&mut self, records: &[Record], account: &Account, unfinished: u64) {
        records.iter().for_each(|record| self.listed.add(record.body_bytes));
        self.answered += account.answered;
        self.lost += account.lost;
        self.refused += account.refused;
        self.unfinished += unfinished;
    }
}

fn together(lanes: Vec<Tally>) -> Tally {
    let mut all = Tally::default();
    lanes.into_iter().for_each(|tally| all.merge(tally));
    all
}

fn what_sites_count_is_what_we_count(driver: Driver) {
    let cloud = Cloud::start(driver);
    let company = Company::new();
    let file = cloud.state.path().join("company.pem");
    fs::write(&file, &company.root_pem).unwrap();
    let roots = file.to_str().unwrap();
    let tunnel = cloud.start_bumping_tunnel(&["--shards", "1", "--no-proxy-caching", "--cacert-file", roots]);
    let certificate = company.site(&["127.0.0.1"], |_| {}).server_config();
    let mut world = World::new(driver as u64 + 1, messages());
    world.proxy = Some(tunnel.proxy);
    world.fronts = world
        .servers
        .iter()
        .map(|server| front::start(&certificate, server.address))
        .collect();
    world.trust = tls::trust_file(&cloud.ca()).unwrap();
    let begun = Instant::now();
    let lanes = world.browse();
    let took = begun.elapsed();
    let in_tls: Vec<(u64, u64)> = lanes
        .iter()
        .filter_map(|lanes| lanes.last())
        .map(|tally| (tally.messages, tally.forwarded))
        .collect();
    let mut tallies: Vec<Tally> = lanes.into_iter().map(together).collect();
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let (sent, forwarded, requests) = (sum(|t| t.messages), sum(|t| t.forwarded), sum(|t| t.begun));
    let counted = cloud.tunnel(&tunnel.id)["culvert"]["requests"].as_u64();
    println!("inside TLS, of each server, messages and forwarded ones: {in_tls:?}");
    println!("{sent} messages in {took:?}, {forwarded} of them forwarded; {requests} requests, {counted:?} counted");
    let (mut found, mut sum) = (BTreeMap::new(), Sum::default());
    for (index, tally) in tallies.iter_mut().enumerate() {
        match world.disagreements(index, tally, &mut sum) {
            0 => {}
            several => drop(found.insert(world.servers[index].name, several)),
        }
    }
    assert!(
        found.is_empty(),
        "disagreements: {found:?}; SEED=N sends message N alone"
    );
    assert_eq!(counted, Some(requests));
    println!("of all servers: {sum:?}");
    let most = requests - sum.refused - sum.unfinished;
    assert!(
        (most - sum.lost.requests..=most).contains(&sum.listed.requests),
        "{sum:?}"
    );
    let most = sum.answered.body_bytes + sum.lost.body_bytes;
    assert!(
        (sum.answered.body_bytes..=most).contains(&sum.listed.body_bytes),
        "{sum:?}"
    );
    if world.numbers.end - world.numbers.start > 1 {
        assert!(sent == messages() && forwarded * 100 >= sent * 30);
        let is_spread = |tally: &Tally| tally.forwarded * 100 >= tally.messages * 20;
        assert!(tallies.iter().all(is_spread), "a server got too little");
        let (sent, forwarded) = in_tls
            .iter()
            .fold((0, 0), |(sent, forwarded), (m, f)| (sent + m, forwarded + f));
        assert!(forwarded * 100 >= sent * 30, "too little went in TLS");
    }
    tunnel.stop();
}

/// The test can fail: a proxy that passes on what it is sent is found out by each server.
#[test]
fn whoever_forwards_everything_is_found_out() {
    let mut world = World::new(1, 2_000);
    let lanes = world.browse();
    let mut tallies: Vec<Tally> = lanes.into_iter().map(together).collect();
    for (index, tally) in tallies.iter_mut().enumerate() {
        let found = world.disagreements(index, tally, &mut Sum::default());
        assert!(found > 0, "{} counts what we count", world.servers[index].name);
    }
}
