//! Browsers that leave while their request waits for a link: they are noticed, cost nothing any more, and nothing of
//! theirs reaches the site later. One that only has nothing more to say gets its answer.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tests::both_drivers;
use tests::cloud::{Cloud, Driver, Tunnel, fault_lasts};
use tests::http::{Client, dial};
use tests::origin::Origin;
use tests::process::open_fds;
use tests::relay::{Cut, Rule, Which};

both_drivers![who_left_is_not_waited_for];

/// Twice as often as it is looked, and time for a busy machine.
const NOTICED_MAX: Duration = Duration::from_secs(8);
/// Longer than it takes to notice that somebody left.
const LARGE: usize = 200_000;

#[derive(Clone, Copy, Debug)]
enum Leave {
    Reset,
    Close,
}

/// The requests of those who will leave.
fn requests(origin: &Origin) -> Vec<Vec<u8>> {
    let (base, site) = (origin.base(), origin.http);
    let post = |key: &str, length: usize| {
        let head = format!("POST {base}/once?key={key} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        [head.into_bytes(), vec![b'x'; length]].concat()
    };
    vec![
        format!("GET {base}/echo-head HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(),
        post("small", 10),
        post("large", LARGE),
        format!("CONNECT {site} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(),
    ]
}

fn send(tunnel: &Tunnel, request: &[u8]) -> TcpStream {
    let mut socket = dial(tunnel.proxy).unwrap();
    socket.write_all(request).unwrap();
    socket
}

fn who_left_is_not_waited_for(driver: Driver) {
    let (cloud, origin) = (Cloud::start(driver), Origin::start());
    let tunnel = cloud.start_tunnel();
    tunnel.serves(&origin);
    let endpoint = cloud.endpoint();
    cloud.relay.set(Which::Links, Rule::Refuse);
    cloud.relay.cut(Which::Links, Cut::Reset);
    cloud.relay.wait("the loss", |s| s.links_open == 0);
    let requests_before = origin.counters().requests;
    let connections_before = origin.counters().connections;
    let reported = || {
        let object = cloud.tunnel(&tunnel.id);
        object["culvert"]["connections"].as_u64()
    };
    println!("{:?}", reported());

    let before = open_fds(endpoint);
    let half_closed = send(&tunnel, &post(&origin, "half-closed"));
    half_closed.shutdown(Shutdown::Write).unwrap();
    let staying = send(&tunnel, &post(&origin, "staying"));
    let mut leaving = Vec::new();
    for how in [Leave::Reset, Leave::Close] {
        for request in requests(&origin) {
            leaving.push((how, send(&tunnel, &request)));
        }
    }
    // All are taken: the broker passes them on as they come.
    let since = Instant::now();
    let all = before + 2 + leaving.len();
    while before > 0 && open_fds(endpoint) < all {
        assert!(since.elapsed() < NOTICED_MAX, "{} of {all}", open_fds(endpoint));
        thread::yield_now();
    }
    for (how, socket) in leaving {
        if matches!(how, Leave::Reset) {
            SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    let since = Instant::now();
    while before > 0 && open_fds(endpoint) > before + 2 {
        assert!(
            since.elapsed() < NOTICED_MAX,
            "{} descriptors of those who left",
            open_fds(endpoint) - before - 2
        );
        fault_lasts(Duration::from_millis(50));
    }
    println!("{driver:?}: noticed after {:?}", since.elapsed());
    if before == 0 {
        // Nobody may look: they are noticed all the same.
        fault_lasts(NOTICED_MAX);
    }

    cloud.relay.set(Which::Links, Rule::Pass);
    for socket in [half_closed, staying] {
        let answer = Client::over(socket).read_answer("POST").unwrap();
        assert_eq!((answer.status(), answer.text()), (200, "1".to_owned()));
    }
    tunnel.serves(&origin);
    let counters = origin.counters();
    assert_eq!(counters.posts.keys().collect::<Vec<_>>(), ["half-closed", "staying"]);
    assert_eq!(counters.requests, requests_before + 3, "{:?}", counters.paths);
    assert!(counters.connections <= connections_before + 3);
    tunnel.stop();
}

fn post(origin: &Origin, key: &str) -> Vec<u8> {
    let target = format!("{}/once?key={key}", origin.base());
    format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello").into_bytes()
}
