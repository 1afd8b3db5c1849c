//! One tunnel from end to end: everything a browser does over the proxy port, and what launchers see of `sc`.

use std::fs;
use std::io::ErrorKind;
use std::thread;

use rustix::process::Signal;
use tests::both_drivers;
use tests::cloud::{Cloud, Driver, UP};
use tests::http::{Client, connect};
use tests::origin::Origin;
use tests::process::{PATIENCE, Process, is_closed_to_us};
use tests::websocket::WebSocket;
use tests::{body, tls};

both_drivers![
    requests_and_bodies,
    https_and_websockets,
    counts_agree,
    errors_are_named,
    cuts_show,
    localhost_is_the_tunnel_host,
    many_at_once,
    the_endpoint_has_the_driver_asked_for_and_no_listener,
];

fn requests_and_bodies(driver: Driver) {
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    let base = origin.base();
    let mut client = tunnel.client();
    for (query, length) in [
        ("", 0),
        ("", 1),
        ("", 70_000),
        ("", 5_000_003),
        ("&chunked", 0),
        ("&chunked", 5_000_003),
    ] {
        client.download(&base, 11, length, query).unwrap();
    }
    for length in [0, 1, 70_000, 5_000_003] {
        client.upload(&base, length + 1, length, false).unwrap();
        client.upload(&base, length + 2, length, true).unwrap();
    }
    let head = client.request("HEAD", &format!("{base}/page"), &[], &[]).unwrap();
    assert!(head.status() == 200 && head.head.field("content-length").is_some() && head.body.is_empty());
    assert_eq!(client.get(&format!("{base}/nothing")).unwrap().status(), 404);
    let fields = [
        ("X-Two", "a"),
        ("Proxy-Connection", "keep-alive"),
        ("Connection", "X-Hop"),
        ("X-Hop", "1"),
        ("x-two", "b"),
    ];
    let text = client
        .request("GET", &format!("{base}/echo-head?q=1"), &fields, &[])
        .unwrap()
        .text();
    assert!(text.starts_with("GET /echo-head?q=1 HTTP/1.1\r\n"), "{text}");
    assert!(
        text.contains("X-Two: a\r\nx-two: b\r\n") && !text.contains("X-Hop: 1"),
        "{text}"
    );
    assert!(!text.to_lowercase().contains("proxy-connection"), "{text}");
    // The last of this connection: an answer delimited by its end.
    client.download(&base, 12, 300_000, "&close").unwrap();
    tunnel.stop();
}

fn https_and_websockets(driver: Driver) {
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    let config = origin.site.client_config();
    let https = || {
        tls::client_through(tunnel.proxy, &config, "localhost", origin.https.port())
            .unwrap()
            .unwrap()
    };
    let mut client = https();
    client.download("", 21, 5_000_003, "").unwrap();
    client.upload("", 22, 5_000_003, true).unwrap();
    // A connection that stays open would keep the tunnel from draining.
    drop(client);
    let plain = || Client::over(connect(tunnel.proxy, &origin.http.to_string()).unwrap().unwrap());
    let target = format!("{}/ws", origin.base());
    // wss as CONNECT with TLS, ws as CONNECT with a plain Upgrade inside, ws as an absolute-form request.
    for (client, target) in [
        (https(), "/ws"),
        (plain(), target.as_str()),
        (tunnel.client(), target.as_str()),
    ] {
        let mut socket = WebSocket::open(client, target).unwrap();
        for length in [0, 1, 126, 70_000, 1_000_000] {
            socket.echo(&body::bytes(23, length)).unwrap();
        }
        socket.close().unwrap();
    }
    assert_eq!(origin.counters().messages, 15);
    tunnel.stop();
}

fn counts_agree(driver: Driver) {
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    let mut client = tunnel.client();
    for i in 0..25 {
        client.download(&origin.base(), i, 1_000, "").unwrap();
    }
    let config = origin.site.client_config();
    for i in 0..5 {
        let mut client = tls::client_through(tunnel.proxy, &config, "localhost", origin.https.port())
            .unwrap()
            .unwrap();
        client.download("", i, 1_000, "").unwrap();
    }
    let counted = cloud.tunnel(&tunnel.id)["culvert"]["requests"].as_u64();
    assert_eq!((counted, origin.counters().requests), (Some(30), 30));
    tunnel.stop();
}

fn errors_are_named(driver: Driver) {
    let cloud = Cloud::start(driver);
    let tunnel = cloud.start_tunnel();
    let closed = {
        // Bound and not listening: refused, and nobody else takes the port meanwhile.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket
            .bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into())
            .unwrap();
        socket
    };
    let closed_address = closed.local_addr().unwrap().as_socket().unwrap();
    for (authority, name) in [
        (closed_address.to_string(), "refused"),
        ("nowhere.invalid:80".into(), "dns"),
    ] {
        let answer = tunnel.client().get(&format!("http://{authority}/")).unwrap();
        assert_eq!(
            (answer.status(), answer.head.field("culvert-error")),
            (502, Some(name)),
            "{answer:?}"
        );
        assert!(
            !answer.body.is_empty() && answer.head.field("culvert-settings").is_some(),
            "{answer:?}"
        );
        let answer = connect(tunnel.proxy, &authority).unwrap().unwrap_err();
        assert_eq!(
            (answer.status(), answer.head.field("culvert-error")),
            (502, Some(name)),
            "{answer:?}"
        );
    }
    tunnel.stop();
}

fn cuts_show(driver: Driver) {
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    for query in ["&cut", "&cut&chunked"] {
        let error = tunnel
            .client()
            .download(&origin.base(), 31, 1_000_000, query)
            .unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset),
            "{error}"
        );
    }
    tunnel.stop();
}

fn localhost_is_the_tunnel_host(driver: Driver) {
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    tunnel
        .client()
        .download(&format!("http://localhost:{}", origin.http.port()), 41, 1_000, "")
        .unwrap();
    tunnel.stop();
}

fn many_at_once(driver: Driver) {
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    thread::scope(|scope| {
        for i in 0..50 {
            let (tunnel, base) = (&tunnel, origin.base());
            scope.spawn(move || {
                let mut client = tunnel.client();
                for j in 0..10 {
                    client
                        .download(&base, i * 100 + j, 10_000 * j, if j % 2 == 0 { "" } else { "&chunked" })
                        .unwrap();
                    client.upload(&base, i * 100 + j, 10_000 * j, j % 2 == 0).unwrap();
                }
            });
        }
    });
    assert_eq!(origin.counters().requests, 1_000);
    tunnel.stop();
}

fn the_endpoint_has_the_driver_asked_for_and_no_listener(driver: Driver) {
    let cloud = Cloud::start(driver);
    let tunnel = cloud.start_tunnel();
    let endpoint = cloud.endpoint();
    if is_closed_to_us(endpoint) {
        return;
    }
    let links = fs::read_dir(format!("/proc/{endpoint}/fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()));
    let open: Vec<String> = links
        .flatten()
        .map(|link| link.to_string_lossy().into_owned())
        .collect();
    let rings = open.iter().filter(|link| link.contains("io_uring")).count();
    assert_eq!(rings > 0, driver == Driver::IoUring, "{open:?}");
    // Of a line of /proc/net/tcp: state is field 3, 0A for listening; the inode is field 9.
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let listeners: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(3) == Some(&"0A"))
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    // The control: the cloud, whose listeners these are, is in the table.
    assert!(listeners.len() >= 2, "{table}");
    assert!(open.iter().all(|link| !listeners.contains(link)), "{open:?}");
    tunnel.stop();
}

#[test]
fn ambiguous_messages_get_400_and_close() {
    let (cloud, origin) = (Cloud::start(Driver::Epoll), Origin::start());
    let tunnel = cloud.start_tunnel();
    let host = origin.http;
    let line = format!("POST http://{host}/upload HTTP/1.1\r\nHost: {host}\r\n");
    for rest in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "Content-Length: +3\r\n\r\nabc",
        "Content-Length: 0x3\r\n\r\nabc",
        "Content-Length: \r\n\r\nabc",
        "Content-Length: 3, 4\r\n\r\nabcd",
        "Content-Length: 99999999999999999999\r\n\r\nabc",
        "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        " Folded: x\r\nContent-Length: 0\r\n\r\n",
        ": empty-name\r\nContent-Length: 0\r\n\r\n",
        "A: b\nContent-Length: 0\r\n\r\n",
        "A: b\rc\r\nContent-Length: 0\r\n\r\n",
        "A: \0\r\nContent-Length: 0\r\n\r\n",
        "Host: other.example\r\nContent-Length: 0\r\n\r\n",
    ] {
        let mut client = tunnel.client();
        client.send_raw(format!("{line}{rest}").as_bytes()).unwrap();
        let answer = client.read_answer("POST").unwrap_or_else(|e| panic!("{rest:?}: {e}"));
        assert_eq!(answer.status(), 400, "{rest:?}: {answer:?}");
        // Closed: whatever else was sent is never read as a request.
        let next = client.get(&format!("http://{host}/page"));
        assert!(next.is_err(), "{rest:?} left the connection open: {next:?}");
    }
    assert_eq!(origin.counters().requests, 0);
    tunnel.stop();
}

#[test]
fn what_launchers_parse() {
    let cloud = Cloud::start(Driver::Epoll);
    let folder = tempfile::tempdir().unwrap();
    let (ready, pid) = (folder.path().join("ready"), folder.path().join("pid"));
    let mut command = cloud.sc(&folder.path().join("sc.log"));
    command
        .args(["-v", "-i", "main", "--readyfile"])
        .arg(&ready)
        .arg("--pidfile")
        .arg(&pid);
    let tunnel = cloud.adopt(Process::start(&mut command), folder);
    let text = tunnel.process.stdout();
    for part in ["Sauce Connect ", ", build ", "Starting up; pid ", "Tunnel ID: ", UP] {
        assert!(text.contains(part), "{part:?} in:\n{text}");
    }
    assert!(ready.exists());
    assert_eq!(
        fs::read_to_string(&pid).unwrap().trim(),
        tunnel.process.id().to_string()
    );
    let object = cloud.tunnel(&tunnel.id);
    assert_eq!(
        (&object["status"], &object["is_ready"]),
        (&"running".into(), &true.into())
    );
    assert_eq!(object["tunnel_identifier"], "main");
    for (what, text) in [
        ("sc", tunnel.process.visible()),
        ("sc-cloud", cloud.process.visible()),
        ("the log", tunnel.log()),
    ] {
        assert!(!text.contains(&cloud.key), "{what} shows the key: {text}");
    }
    let id = tunnel.id.clone();
    tunnel.stop();
    let after = cloud.rest("GET", &format!("/{}/tunnels/{id}", cloud.user));
    assert!(
        after.status() == 404 || after.json()["status"] == "terminated",
        "{}",
        after.text()
    );
}

#[test]
fn sigterm_drains() {
    let (cloud, origin) = (Cloud::start(Driver::Epoll), Origin::start());
    let mut tunnel = cloud.start_tunnel();
    let (proxy, base) = (tunnel.proxy, origin.base());
    let download = thread::spawn(move || Client::dial(proxy)?.download(&base, 51, 3_000_000, "&held"));
    origin.wait("the body", |c| c.held == 1);
    tunnel.process.signal(Signal::TERM);
    tunnel.process.line("the drain", |line| {
        line.contains("Will wait for up to 300s").then_some(())
    });
    assert!(tunnel.process.is_running());
    origin.open_gate();
    download.join().unwrap().unwrap();
    assert_eq!(tunnel.process.exit_code(PATIENCE), 0);
    assert!(tunnel.process.stdout().contains("Goodbye."));
}

#[test]
fn a_second_signal_is_immediate() {
    let (cloud, origin) = (Cloud::start(Driver::Epoll), Origin::start());
    let mut tunnel = cloud.start_tunnel();
    let (proxy, base) = (tunnel.proxy, origin.base());
    let download = thread::spawn(move || Client::dial(proxy)?.download(&base, 52, 3_000_000, "&held"));
    origin.wait("the body", |c| c.held == 1);
    tunnel.process.signal(Signal::INT);
    tunnel
        .process
        .line("the drain", |line| line.contains("Press Ctrl-C again").then_some(()));
    tunnel.process.signal(Signal::INT);
    assert_eq!(tunnel.process.exit_code(PATIENCE), 0);
    assert!(download.join().unwrap().is_err());
}

#[test]
fn a_newer_tunnel_replaces_one_of_the_same_name() {
    let cloud = Cloud::start(Driver::Epoll);
    let mut first = cloud.start_tunnel_with(&["-i", "same"]);
    let second = cloud.start_tunnel_with(&["-i", "same"]);
    assert_eq!(first.process.exit_code(PATIENCE), 6);
    second.stop();
}
