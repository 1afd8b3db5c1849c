//! What an endpoint knows of sites' certificates: one shard learns it and all go by it, and what a site says while its
//! certificate is bad reaches nobody who was shown a good one.

use std::cell::{Cell, RefCell};
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use dataplane::limits::PINNED_APART;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned, version};
use tests::both_drivers;
use tests::bumping;
use tests::certificate::{self, Company};
use tests::cloud::{CloudOptions, Driver, fault_lasts, until};
use tests::http::{Answer, Client, Connection, dial};
use tests::origin::Origin;
use tests::process::is_closed_to_us;
use tests::socket::watched_by;
use tests::tls;

both_drivers![
    what_one_shard_saw_the_other_shows,
    what_one_shard_learns_the_other_leaves_alone,
    no_renewal_is_what_a_bad_site_says,
];

const NAMES: &[&str] = &["localhost"];
/// Of the endpoint.
const SHARDS: usize = 2;

struct World {
    bumping: bumping::World,
    plain: Origin,
    /// By which each shard watches its sockets, in the order in which browsers have come to them.
    shards: RefCell<Vec<u32>>,
    dialled: Cell<usize>,
}

impl World {
    fn start(driver: Driver) -> Self {
        let options = CloudOptions {
            endpoint_shards: SHARDS,
            ..CloudOptions::new(driver)
        };
        Self {
            bumping: bumping::World::of(Company::new(), options, &["--shards", "2"]),
            plain: Origin::start(),
            shards: RefCell::default(),
            dialled: Cell::new(0),
        }
    }

    /// A browser's connection that this shard serves.
    fn dial(&self, shard: usize) -> TcpStream {
        let endpoint = self.bumping.cloud.endpoint();
        // What comes alone goes to the shard that got fewest.
        for _ in 0..2 * SHARDS {
            let socket = dial(self.bumping.tunnel.proxy).unwrap();
            let mut client = Client::over(socket.try_clone().unwrap());
            let answer = client.get(&format!("{}/echo-head", self.plain.base()));
            assert_eq!(answer.unwrap().status(), 200);
            let served_by = match watched_by(endpoint, &socket) {
                Some(set) => self.number(set),
                None => {
                    assert!(is_closed_to_us(endpoint), "no shard watches it");
                    self.dialled.replace(self.dialled.get() + 1) % SHARDS
                }
            };
            if served_by == shard {
                return socket;
            }
        }
        panic!("browsers come to these shards alone: {:?}", self.shards);
    }

    fn number(&self, set: u32) -> usize {
        let mut shards = self.shards.borrow_mut();
        let known = shards.iter().position(|shard| *shard == set);
        known.unwrap_or_else(|| {
            shards.push(set);
            shards.len() - 1
        })
    }

    /// A connection that leads to the site.
    fn connect(&self, shard: usize, port: u16) -> TcpStream {
        let socket = self.dial(shard);
        let mut client = Client::over(socket.try_clone().unwrap());
        let head = format!("CONNECT localhost:{port} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n");
        client.send_raw(head.as_bytes()).unwrap();
        assert_eq!(client.read_head().unwrap().status(), 200);
        socket
    }

    /// A browser that sees the site, and the leaf that it is shown.
    fn browser(&self, shard: usize, port: u16, trust: &Arc<ClientConfig>) -> io::Result<(Client, Vec<u8>)> {
        let mut socket = self.connect(shard, port);
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = ClientConnection::new(trust.clone(), name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        let leaf = connection.peer_certificates().expect("a server has some")[0].to_vec();
        let client = Client::over(StreamOwned::new(connection, socket));
        Ok((client.of_host(&format!("localhost:{port}")), leaf))
    }

    /// An app that takes no leaf but its site's own; returns when the endpoint knows that.
    fn refuse(&self, shard: usize, port: u16, pinned: &Arc<ClientConfig>) {
        let socket = self.connect(shard, port);
        let mut rest = socket.try_clone().unwrap();
        let error = tls::client(pinned, "localhost", socket)
            .err()
            .expect("not the pinned one");
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
        // It may be a reset.
        let _ = rest.read_to_end(&mut Vec::new());
    }
}

fn assert_changed(answer: &Answer) {
    let shown = (answer.status(), answer.head.field("Culvert-Error"));
    assert_eq!(shown, (502, Some("verdict-changed")), "{}", answer.text());
}

/// Verdict and leaf, and that they are not true any more.
fn what_one_shard_saw_the_other_shows(driver: Driver) {
    let world = World::start(driver);
    let careless = certificate::careless();
    let expired = world.bumping.company.site(NAMES, certificate::expired).server_config();
    let origin = Origin::of(world.bumping.company.site(NAMES, |_| {}));
    let port = origin.https.port();
    let becomes = |config: Arc<ServerConfig>| {
        origin.set_tls(config);
        origin.close_connections();
    };

    let (mut first, good) = world.browser(0, port, &world.bumping.trust).unwrap();
    first.download("", 1, 1_000, "").unwrap();
    becomes(expired);
    let (mut second, shown) = world.browser(1, port, &world.bumping.trust).unwrap();
    assert!(shown == good, "it is not the leaf of the other shard");
    assert_changed(&second.get("/bytes?seed=1&length=10").unwrap());

    let (mut third, bad) = world.browser(0, port, &careless).unwrap();
    assert!(bad != good, "the look that was not true any more");
    third.download("", 1, 1_000, "").unwrap();
    becomes(origin.site.server_config());
    let (mut fourth, shown) = world.browser(1, port, &careless).unwrap();
    assert!(shown == bad, "it is not the leaf of the other shard");
    assert_changed(&fourth.get("/bytes?seed=1&length=10").unwrap());

    let (mut last, shown) = world.browser(0, port, &world.bumping.trust).unwrap();
    assert!(shown == good, "it is not the leaf that was made before");
    last.download("", 1, 1_000, "").unwrap();
}

/// Sites that want client certificates, and those of apps that pin their site.
fn what_one_shard_learns_the_other_leaves_alone(driver: Driver) {
    let world = World::start(driver);
    let sees_the_site = |shard, origin: &Origin| {
        let own = origin.site.client_config();
        let (mut client, leaf) = world.browser(shard, origin.https.port(), &own).unwrap();
        assert!(leaf == origin.site.leaf(), "it is not the site's own");
        client.download("", 1, 1_000, "").unwrap();
    };
    for (learns, other) in [(0, 1), (1, 0)] {
        let origin = Origin::of(world.bumping.company.site(NAMES, |_| {}));
        let own = origin.site.client_config();
        origin.set_tls(origin.site.server_config_of(&[&version::TLS12], true));
        let asked = world.browser(learns, origin.https.port(), &own);
        let refused = asked.and_then(|(mut client, _)| client.get("/"));
        refused.expect_err("it has no certificate");
        // Whoever looked again would find that TLS may end at the endpoint.
        origin.set_tls(origin.site.server_config());
        sees_the_site(other, &origin);
    }

    let origin = Origin::of(world.bumping.company.site(NAMES, |_| {}));
    let port = origin.https.port();
    // Fewer on each shard than it takes.
    for (shard, apart) in [(0, true), (1, true), (0, false)] {
        world.refuse(shard, port, &origin.site.client_config());
        if apart {
            fault_lasts(PINNED_APART);
        }
    }
    for shard in [1, 0] {
        sees_the_site(shard, &origin);
    }
}

/// What a site that tells its certificate shows, and says.
type Shown = (Arc<ServerConfig>, &'static str);

/// Answers one request a connection; each answer may be given again while it is renewed.
struct Candid {
    port: u16,
    shown: Arc<Mutex<Shown>>,
    /// To whoever has asked for something.
    said: Arc<Mutex<Vec<&'static str>>>,
}

impl Candid {
    fn start(shown: Shown) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (shown, said) = (Arc::new(Mutex::new(shown)), Arc::new(Mutex::new(Vec::new())));
        let (now, saying) = (shown.clone(), said.clone());
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (shown, said) = (now.lock().unwrap().clone(), saying.clone());
                // Whoever does not like the certificate asks for nothing.
                thread::spawn(move || answer(socket, shown, &said));
            }
        });
        Self { port, shown, said }
    }

    fn becomes(&self, shown: Shown) {
        *self.shown.lock().unwrap() = shown;
    }

    fn said(&self) -> Vec<&'static str> {
        self.said.lock().unwrap().clone()
    }
}

fn answer(socket: TcpStream, (config, words): Shown, said: &Mutex<Vec<&'static str>>) -> io::Result<()> {
    let tls = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut connection = Connection::over(StreamOwned::new(tls, socket));
    if connection.read_head()?.is_some() {
        said.lock().unwrap().push(words);
        let length = words.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=0, stale-while-revalidate=600\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n{words}"
        );
        connection.write(head.as_bytes())?;
    }
    Ok(())
}

/// Which page a browser gets, and whether the cache has given or taken it.
fn page(client: &mut Client, target: &str) -> (String, bool) {
    let answer = client.get(target).unwrap();
    assert_eq!(answer.status(), 200, "{:?}", answer.head);
    let status = answer.head.field("Cache-Status").unwrap_or_default();
    let cached = ["hit", "stored", "ttl"].iter().any(|word| status.contains(word));
    (answer.text(), cached)
}

/// An answer that may be given stale is not renewed by a site whose certificate has turned bad meanwhile.
fn no_renewal_is_what_a_bad_site_says(driver: Driver) {
    let world = World::start(driver);
    let good = world.bumping.company.site(NAMES, |_| {}).server_config();
    let bad = world.bumping.company.site(NAMES, certificate::expired).server_config();
    let site = Candid::start((good.clone(), "good"));
    let [mut early, mut other] = [0, 1].map(|shard| world.browser(shard, site.port, &world.bumping.trust).unwrap().0);
    let stored = ("good".to_owned(), true);
    assert_eq!(page(&mut early, "/a"), stored);

    site.becomes((bad, "bad"));
    let refused = format!("verdict-changed: localhost:{}: ", site.port);
    let renewals = || world.bumping.tunnel.log().matches(&refused).count();
    until("a renewal is refused", || {
        for client in [&mut early, &mut other] {
            assert_eq!(page(client, "/a"), stored);
        }
        renewals() > 0
    });
    for client in [&mut early, &mut other] {
        assert_eq!(page(client, "/a"), stored);
    }
    assert_eq!(site.said(), ["good"]);

    // What is asked of the site itself has the next browser see it for what it is; its user goes on all the same.
    assert_changed(&early.get("/b").unwrap());
    let (mut careless, _) = world.browser(0, site.port, &certificate::careless()).unwrap();
    for _ in 0..2 {
        assert_eq!(page(&mut careless, "/a"), ("bad".to_owned(), false));
    }
    assert_eq!(page(&mut other, "/a"), stored);
    assert_eq!(site.said(), ["good", "bad", "bad"]);

    site.becomes((good, "good again"));
    until("it is renewed", || {
        page(&mut other, "/a") == ("good again".to_owned(), true)
    });
    assert!(!site.said()[3..].contains(&"bad"));
}
