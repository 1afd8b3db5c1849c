//! Who may use a proxy port: browsers of the networks that `--proxy-networks` names. All others are told so, and that
//! is all that they get.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use dataplane::limits::STRANGERS_MAX;
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use tests::both_drivers;
use tests::cloud::{Cloud, CloudOptions, Driver, fault_lasts, until};
use tests::http::{Client, PATIENCE};
use tests::origin::Origin;
use tests::process::Held;

both_drivers![
    strangers_are_told_so_and_served_nothing,
    strangers_take_no_place_of_browsers
];

const OURS: Ipv4Addr = Ipv4Addr::new(127, 7, 0, 9);
const STRANGE: Ipv4Addr = Ipv4Addr::new(127, 8, 0, 9);

fn dial_from(own: Ipv4Addr, proxy: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((own, 0)).into())?;
    socket.connect(&proxy.into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

fn strangers_are_told_so_and_served_nothing(driver: Driver) {
    let mut options = CloudOptions::new(driver);
    options.endpoint_shards = 2;
    options.arguments = [
        "--proxy-networks",
        "127.7.0.0/16,127.9.9.9",
        "--browser-head-timeout",
        "1s",
    ]
    .map(str::to_owned)
    .into();
    let (mut cloud, origin) = (Cloud::with(options), Origin::start());
    // It is ready though the self-test comes from no network of the list.
    let tunnel = cloud.start_tunnel();
    let site = origin.http.to_string();
    let requests = [
        format!("GET {}/echo-head HTTP/1.1\r\nHost: {site}\r\n\r\n", origin.base()),
        format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n"),
        "GET http://probe.culvert.invalid/nonce HTTP/1.1\r\nHost: probe.culvert.invalid\r\n\r\n".to_owned(),
    ];
    let ask = |own, request: &str| {
        let mut client = Client::over(dial_from(own, tunnel.proxy).unwrap());
        client.send_raw(request.as_bytes()).unwrap();
        let answer = client.read_answer("GET").unwrap();
        let name = answer.head.field("Culvert-Error").map(str::to_owned);
        (
            answer.status(),
            name,
            answer.text().contains("--proxy-networks"),
            client,
        )
    };
    let mut refused = 0;
    // Often enough for both shards.
    for request in requests.iter().cycle().take(12) {
        let (status, name, says_why, mut client) = ask(STRANGE, request);
        assert_eq!(
            (status, name.as_deref(), says_why),
            (403, Some("denied"), true),
            "{request}"
        );
        assert!(
            client.get(&format!("{}/echo-head", origin.base())).is_err(),
            "it is closed"
        );
        refused += 1;
    }
    assert_eq!(origin.counters().path("/echo-head"), 0);
    for own in [OURS, Ipv4Addr::new(127, 9, 9, 9)] {
        let (status, name, ..) = ask(own, &requests[0]);
        assert_eq!((status, name), (200, None));
    }
    assert_eq!(origin.counters().path("/echo-head"), 2);
    until("all are counted", || {
        let tunnel = cloud.tunnel(&tunnel.id);
        tunnel["culvert"]["errors"]["denied"] == refused
    });
    let line = format!(
        "proxy port {}: a browser from {STRANGE}, which no network of --proxy-networks holds",
        tunnel.proxy.port()
    );
    until("its address is in the log", || cloud.process.stderr().contains(&line));

    // Who says nothing has no place for as long as browsers that are welcome: the head's time limit ends it.
    let welcome = dial_from(OURS, tunnel.proxy).unwrap();
    let (silent, slow) = [STRANGE; 2].map(|own| dial_from(own, tunnel.proxy).unwrap()).into();
    let dripped = Instant::now();
    while (&slow).write_all(b"G").is_ok() && dripped.elapsed() < PATIENCE {
        fault_lasts(Duration::from_millis(50));
    }
    assert!(dripped.elapsed() < PATIENCE, "who is slow has all the time");
    assert_eq!((&silent).read(&mut [0]).unwrap(), 0);
    welcome.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let kind = (&welcome).read(&mut [0]).unwrap_err().kind();
    assert_eq!(kind, io::ErrorKind::WouldBlock);

    let is_served = || {
        let mut client = Client::over(dial_from(OURS, tunnel.proxy).unwrap());
        client.send_raw(requests[0].as_bytes()).unwrap();
        client.read_answer("GET").is_ok_and(|answer| answer.status() == 200)
    };
    // The next endpoint knows them as well, and so does the next broker that it does.
    Held::of(cloud.endpoint()).unwrap().signal(Signal::KILL);
    until("it is served again", is_served);
    assert_eq!(ask(STRANGE, &requests[0]).0, 403);
    cloud.kill();
    cloud.restart();
    until("it is adopted", is_served);
    assert_eq!(ask(STRANGE, &requests[0]).0, 403);
}

/// However many there are, and however long they say nothing.
fn strangers_take_no_place_of_browsers(driver: Driver) {
    let mut options = CloudOptions::new(driver);
    options.arguments = ["--proxy-networks", "127.7.0.0/16"].map(str::to_owned).into();
    let (cloud, origin) = (Cloud::with(options), Origin::start());
    let tunnel = cloud.start_tunnel();
    let flood: Vec<_> = (0..8 * STRANGERS_MAX)
        .map(|_| dial_from(STRANGE, tunnel.proxy).unwrap())
        .collect();
    flood
        .iter()
        .for_each(|stranger| stranger.set_nonblocking(true).unwrap());
    let open = || {
        let is_open = |stranger: &&TcpStream| {
            let mut stranger = *stranger;
            stranger
                .read(&mut [0])
                .is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
        };
        flood.iter().filter(is_open).count()
    };
    until("those beyond the bound are closed", || open() == STRANGERS_MAX);
    let mut client = Client::over(dial_from(OURS, tunnel.proxy).unwrap());
    assert_eq!(
        client.get(&format!("{}/echo-head", origin.base())).unwrap().status(),
        200
    );
    assert_eq!(open(), STRANGERS_MAX);
}
