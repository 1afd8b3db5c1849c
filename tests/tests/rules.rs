//! The operator's rules: what is dropped never reaches the site, and the browser is told which rule it was.

use tests::both_drivers;
use tests::cloud::{Cloud, Driver, until};
use tests::http::{Answer, Client, connect};
use tests::origin::Origin;
use tests::websocket::WebSocket;

both_drivers![fast_fail, fast_fail_in_a_connect];

fn blocked_by(answer: &Answer, rule: &str) {
    let (head, page) = (&answer.head, answer.text());
    assert_eq!(
        (answer.status(), head.field("Culvert-Error")),
        (403, Some("blocked")),
        "{head:?}"
    );
    assert!(page.contains(rule), "{rule} is not in {page}");
}

/// `-F`: searched in the whole URL of HTTP, and in `https://HOST:PORT/` of what stays opaque.
fn fast_fail(driver: Driver) {
    let origin = Origin::start();
    let (base, https) = (origin.base(), origin.https);
    let opaque = format!(r"^https://127\.0\.0\.1:{}/$", https.port());
    let cloud = Cloud::start(driver);
    let list = format!(r"analytics-provider\.com,/unwanted/.*\.js,{opaque}");
    let tunnel = cloud.start_tunnel_with(&["--shards", "1", "-F", &list]);
    let before = origin.counters();

    let mut client = tunnel.client();
    let page = client.get(&format!(
        "{base}/bytes?seed=1&length=1000&from=www.analytics-provider.com"
    ));
    blocked_by(&page.unwrap(), r"analytics-provider\.com");
    blocked_by(
        &client.get(&format!("{base}/unwanted/1/x.js")).unwrap(),
        r"/unwanted/.*\.js",
    );
    let spelled = client.get("http://WWW.Analytics-Provider.COM.:80/x").unwrap();
    blocked_by(&spelled, r"analytics-provider\.com");
    // The same connection goes on.
    client.download(&base, 1, 1_000, "&path=/unwanted/x.css").unwrap();
    let posted = client
        .request("POST", &format!("{base}/unwanted/x.js"), &[], b"a body")
        .unwrap();
    blocked_by(&posted, r"/unwanted/.*\.js");
    assert!(posted.head.has("Connection", "close"), "its body was not read");
    let refused = connect(tunnel.proxy, &https.to_string()).unwrap();
    let refused = refused.expect_err("the rule is for this port");
    blocked_by(&refused, "^https://");
    assert!(refused.head.has("Connection", "close"), "what follows is no request");
    let http = origin.base().trim_start_matches("http://").to_owned();
    assert!(
        connect(tunnel.proxy, &http).unwrap().is_ok(),
        "no rule is for this port"
    );

    let after = origin.counters();
    assert_eq!(after.requests - before.requests, 1, "{:?}", after.paths);
    let shown = &cloud.tunnel(&tunnel.id)["fast_fail_regexps"];
    assert_eq!(shown.as_array().map(Vec::len), Some(3), "{shown}");
    tunnel.stop();
}

/// `-F`: what is asked in a CONNECT has a URL as well, and so has the WebSocket that browsers open there.
fn fast_fail_in_a_connect(driver: Driver) {
    let origin = Origin::start();
    let site = origin.http.to_string();
    let whole = format!(r"^http://127\.0\.0\.1:{}/page\?resources=7$", origin.http.port());
    let (posts, sockets) = ("^http://[0-9.:]+/upload$", r"/ws\?unwanted");
    let cloud = Cloud::start(driver);
    let list = [&whole, posts, sockets].join(",");
    let tunnel = cloud.start_bumping_tunnel(&["--shards", "1", "-F", &list]);
    let inside = || {
        let socket = connect(tunnel.proxy, &site).unwrap().expect("no rule is for all of it");
        Client::over(socket).of_host(&site)
    };

    let mut client = inside();
    for target in ["/page?resources=7", &format!("http://{site}/page?resources=7")] {
        blocked_by(&client.get(target).unwrap(), &whole);
        // The same connection goes on.
        assert_eq!(client.get("/page?resources=70").unwrap().status(), 200);
    }
    let posted = client.request("POST", "/upload", &[], b"a body").unwrap();
    blocked_by(&posted, posts);
    assert!(posted.head.has("Connection", "close"), "its body was not read");

    let handshake = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let refused = inside().request("GET", "/ws?unwanted", &handshake, &[]).unwrap();
    blocked_by(&refused, sockets);
    let mut socket = WebSocket::open(inside(), "/ws?wanted").unwrap();
    socket.echo(b"through the tunnel").unwrap();
    socket.close().unwrap();

    let counts = origin.counters();
    let asked = ["/page", "/upload", "/ws"].map(|path| counts.path(path));
    assert_eq!(asked, [2, 0, 1], "{counts:?}");
    let counted = || cloud.tunnel(&tunnel.id)["culvert"]["errors"]["blocked"] == 4;
    until("all four are counted", counted);
    tunnel.stop();
}

/// REST is asked by others than `sc` too.
#[test]
fn rest_refuses_what_is_no_expression() {
    let cloud = Cloud::start(Driver::Epoll);
    let body = br#"{"tunnel_identifier":"x","fast_fail_regexps":["fine","(bad"]}"#;
    let answer = cloud.rest_with("POST", &format!("/{}/tunnels", cloud.user), body);
    assert_eq!(answer.status(), 400, "{}", answer.text());
    assert!(
        answer.text().contains("fast_fail_regexps") && answer.text().contains("(bad"),
        "{}",
        answer.text()
    );
}
