//! Headless Chromium and a site in a network namespace that only `sc` enters: a page with 50 resources and a WebSocket
//! echo, over both schemes.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use tests::both_drivers;
use tests::browser::{Browser, Kind};
use tests::cloud::{Cloud, CloudOptions, Driver, binary};
use tests::http::{self, PATIENCE};
use tests::namespace::{Inner, WORLD, in_world};
use tests::process::Process;

both_drivers![loads_a_page_of_the_inside];

fn loads_a_page_of_the_inside(driver: Driver) {
    let module = driver.name();
    if !in_world(&format!("{module}::loads_a_page_of_the_inside")) {
        return;
    }
    let inner = Inner::enclose();
    let cloud = Cloud::with(CloudOptions {
        public: WORLD,
        ..CloudOptions::new(driver)
    });
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("site.pem");
    let mut site = Command::new(binary("demo-site"));
    site.args(["--http", "127.0.0.1:8080", "--https", "127.0.0.1:8443", "--ca"])
        .arg(&ca);
    let site = Process::start(&mut inner.enter(&site));
    site.line("its address", |line| line.starts_with("HTTPS: ").then_some(()));
    // The control: from here the site is not there.
    for port in [8080, 8443] {
        http::dial(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).expect_err("the site is in its own namespace");
    }
    let mut sc = cloud.sc(&folder.path().join("sc.log"));
    sc.arg("--pidfile").arg(folder.path().join("sc.pid"));
    let tunnel = cloud.adopt(Process::start(&mut inner.enter(&sc)), folder);
    let root = std::fs::read_to_string(&ca).unwrap();
    let browser = Browser::start(Kind::Chromium, tunnel.proxy, &[&root]);
    for base in ["http://localhost:8080", "https://localhost:8443"] {
        browser.open(&format!("{base}/page?resources=50"));
        assert_eq!(browser.final_title(), "loaded 50, hello", "{base}");
    }
    drop(browser);
    let counters = tunnel.client().get("http://localhost:8080/counters").unwrap().json();
    assert_eq!(
        (&counters["paths"]["/page"], &counters["messages"]),
        (&2.into(), &2.into()),
        "{counters}"
    );
    assert!(
        (0..50).all(|i| counters["paths"][format!("/resource/{i}")] == 2),
        "{counters}"
    );
    let mut process = tunnel.process;
    // nsenter became sc: the signal is for it.
    process.signal(rustix::process::Signal::TERM);
    assert_eq!(process.exit_code(PATIENCE), 0);
}
