//! `localhost` is the tunnel host, on each port that the original passes on and on any other: HTTP, HTTPS and WebSocket.
//! The cloud is in one network namespace, where something else listens; `sc` and the site are in another one.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tests::both_drivers;
use tests::certificate::Company;
use tests::cloud::{Cloud, CloudOptions, Driver};
use tests::http::Client;
use tests::namespace::{Inner, WORLD, in_world};
use tests::origin::Origin;
use tests::process::Process;
use tests::tls;
use tests::websocket::WebSocket;

both_drivers![each_port_is_the_tunnel_hosts];

/// Those of the original.
const LISTED: [u16; 53] = [
    80, 443, 888, 2000, 2001, 2020, 2109, 2222, 2310, 3000, 3001, 3030, 3210, 3333, 4000, 4001, 4040, 4321, 4502, 4503,
    4567, 5000, 5001, 5050, 5555, 5432, 6000, 6001, 6060, 6666, 6543, 7000, 7070, 7774, 7777, 8000, 8001, 8003, 8031,
    8080, 8081, 8765, 8777, 8888, 9000, 9001, 9080, 9090, 9876, 9877, 9999, 49221, 55001,
];
/// Of all others the ends and some between.
const OTHERS: [u16; 6] = [1, 25, 4445, 10_000, 30_303, 65_535];
/// Where the site has an IPv6 address alone, as servers of developers do.
const IPV6_ONLY: u16 = 5173;

fn each_port_is_the_tunnel_hosts(driver: Driver) {
    let module = driver.name();
    if !in_world(&format!("{module}::each_port_is_the_tunnel_hosts")) {
        return;
    }
    let inner = Inner::enclose();
    let own = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let decoy = Origin::start_at(own(8080), own(443), &["localhost"]).unwrap();
    let company = Company::new();
    let site = company.site(&["localhost"], |_| {});
    let origin = inner.within(|| {
        let origin = Origin::of(site);
        for port in LISTED.into_iter().chain(OTHERS) {
            origin
                .serve_at(own(port))
                .unwrap_or_else(|e| panic!("port {port}: {e}"));
        }
        origin.serve_at((Ipv6Addr::LOCALHOST, IPV6_ONLY).into()).unwrap();
        origin
    });
    let cloud = Cloud::with(CloudOptions {
        public: WORLD,
        ..CloudOptions::new(driver)
    });
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("company.pem");
    fs::write(&roots, &company.root_pem).unwrap();
    let mut sc = cloud.bumping_sc(&folder.path().join("sc.log"));
    sc.arg("--pidfile").arg(folder.path().join("sc.pid"));
    sc.args(["--shards", "1", "--cacert-file"]).arg(roots);
    let tunnel = cloud.adopt(Process::start(&mut inner.enter(&sc)), folder);
    let trust = tls::trust_file(&cloud.ca()).unwrap();

    for port in LISTED.into_iter().chain(OTHERS).chain([IPV6_ONLY]) {
        let base = format!("http://localhost:{port}");
        let secure = || {
            let client = tls::client_through(tunnel.proxy, &trust, "localhost", port);
            client.and_then(|answer| answer.map_err(|page| std::io::Error::other(page.text())))
        };
        let asked = |client: Client, target: &str| -> std::io::Result<()> {
            let mut client = client;
            let echoed = client.get(&format!("{target}/echo-head"))?;
            assert!(
                echoed.text().contains(&format!("Host: localhost:{port}\r\n")),
                "{port}: {}",
                echoed.text()
            );
            let mut socket = WebSocket::open(client, &format!("{target}/ws"))?;
            socket.echo(b"hello")?;
            socket.close()
        };
        let plain = asked(tunnel.client(), &base);
        plain.unwrap_or_else(|e| panic!("HTTP, port {port}: {e}"));
        let within = secure().and_then(|client| asked(client, ""));
        within.unwrap_or_else(|e| panic!("HTTPS, port {port}: {e}"));
    }
    let ports = (LISTED.len() + OTHERS.len() + 1) as u64;
    let counters = origin.counters();
    assert_eq!(
        (counters.path("/echo-head"), counters.path("/ws")),
        (2 * ports, 2 * ports)
    );
    assert_eq!(decoy.counters().connections, 0, "the cloud's own host was asked");
}
