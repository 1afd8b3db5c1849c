//! A kernel that refuses io_uring costs no feature: everything runs on epoll, and that is said once.

use tests::cloud::{Cloud, Driver};
use tests::origin::Origin;

#[test]
fn everything_runs_on_epoll() {
    let (cloud, origin) = (Cloud::start(Driver::Refused), Origin::start());
    let tunnel = cloud.start_tunnel_with(&["--shards", "2"]);
    let mut client = tunnel.client();
    client.download(&origin.base(), 1, 3_000_000, "").unwrap();
    client.upload(&origin.base(), 2, 3_000_000, true).unwrap();
    let said = tunnel
        .log()
        .matches("the kernel refuses io_uring: traffic runs on epoll")
        .count();
    assert_eq!(said, 1, "{}", tunnel.log());
    assert!(cloud.process.stderr().contains("Epoll"), "{}", cloud.process.stderr());
    drop(client);
    tunnel.stop();
}
