//! A `serve` that adopts an endpoint of an earlier version.

use std::net::Ipv4Addr;

use controlplane::cloud::adoption::{self, Door, Key};
use controlplane::cloud::messages::{self, FromEndpoint};
use controlplane::cloud::seqpacket::Seqpacket;
use dataplane::shard::Visitor;
use socket2::{Domain, Socket, Type};

use super::*;

fn dial_from(own: Ipv4Addr, proxy: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((own, 0)).into()).unwrap();
    socket.connect(&proxy.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

#[test]
fn strangers_do_not_reach_an_endpoint_that_takes_them_for_browsers() {
    let mut cloud = Cloud::start_with(&["--proxy-networks", "127.7.0.0/16"]);
    let id = cloud.create(json!({"culvert": {"fingerprint": FINGERPRINT}}));
    let tunnel = cloud.running(&id);
    let proxy = tunnel["culvert"]["proxy"].as_str().unwrap().parse().unwrap();
    let store = rusqlite::Connection::open(cloud.state.path().join("culvert.db")).unwrap();
    let kept = "SELECT adoption_key, rules FROM endpoints WHERE id = ?1";
    let (key, rules): (Vec<u8>, Vec<u8>) = store
        .query_row(kept, [&id], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    // In the place of the real endpoint, which is not asked any more, and lives.
    let door = adoption::make(cloud.state.path(), &id).unwrap();
    cloud.replace();
    let (_control, shard) = cloud.runtime.block_on(async {
        let door = Door::new(door, Key::of(&key).unwrap()).unwrap();
        let sockets = door.offered().await.unwrap().into_iter();
        let mut sockets = sockets.map(|socket| Seqpacket::new(socket).unwrap());
        let control = sockets.next().unwrap();
        let part = messages::encode(&rules);
        let rules = FromEndpoint::Rules { part };
        messages::send(&control, &rules, &[]).await.unwrap();
        let member = json!({"member": messages::member(FINGERPRINT), "links": [], "parted": false});
        let adopted = json!({"fingerprint": FINGERPRINT, "driver": "Epoll", "members": [member]});
        let adopted = json!({"adopted": adopted});
        messages::send(&control, &adopted, &[]).await.unwrap();
        (control, sockets.next().unwrap())
    });
    let mut stranger = dial_from(Ipv4Addr::new(127, 8, 0, 9), proxy);
    assert_eq!(stranger.read(&mut [0]).unwrap(), 0, "it is closed");
    let browser = dial_from(Ipv4Addr::new(127, 7, 0, 9), proxy);
    let mut said = Vec::new();
    let passed = cloud.runtime.block_on(shard.receive(&mut said)).unwrap().unwrap();
    let peers = passed
        .into_iter()
        .map(|socket| TcpStream::from(socket).peer_addr().unwrap());
    assert_eq!(said, [Visitor::Browser.byte()]);
    assert_eq!(peers.collect::<Vec<_>>(), [browser.local_addr().unwrap()]);
}
