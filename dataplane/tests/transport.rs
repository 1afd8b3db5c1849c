//! TLS of browsers and sites over sockets, on both drivers.

use std::cell::Cell;
use std::future::Future;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::BytesMut;
use dataplane::bump::Tls;
use dataplane::shard::pair;
use dataplane::shard::runtime::{self, Driver, Runtime, Socket};
use dataplane::shard::transport::Transport;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use socket2::SockRef;

const PATIENCE: Duration = Duration::from_secs(20);

fn on_both_drivers<F: Future<Output = ()>>(test: impl Fn() -> F) {
    for driver in [Driver::Epoll, Driver::Auto] {
        Runtime::new(driver).unwrap().run(test());
    }
}

/// What both sides of a connection are set up with.
fn configs() -> (ClientConfig, ServerConfig) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(default_provider());
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (client, server)
}

fn name() -> ServerName<'static> {
    ServerName::try_from("a.test").unwrap()
}

/// Both ends of a TCP connection that holds about so much in each direction.
fn pair(bytes: usize) -> (Transport, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&listener).set_send_buffer_size(bytes).unwrap();
    SockRef::from(&listener).set_recv_buffer_size(bytes).unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    SockRef::from(&far).set_recv_buffer_size(bytes).unwrap();
    SockRef::from(&far).set_send_buffer_size(bytes).unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let (near, _) = listener.accept().unwrap();
    (Socket::tcp(near.into()).unwrap().into(), far)
}

#[test]
fn whoever_reads_late_is_told_of_the_end() {
    on_both_drivers(|| async {
        let (client, server) = configs();
        let (mut near, mut far) = pair(64 * 1024);
        let (go, gone) = mpsc::channel::<()>();
        let browser = std::thread::spawn(move || {
            let mut connection = ClientConnection::new(Arc::new(client), name()).unwrap();
            while connection.is_handshaking() {
                connection.complete_io(&mut far).unwrap();
            }
            gone.recv_timeout(PATIENCE).unwrap();
            let mut all = Vec::new();
            // It fails where TLS ends unannounced.
            StreamOwned::new(connection, far)
                .read_to_end(&mut all)
                .map(|_| all.len())
        });
        near.secure(Tls::server(Arc::new(server)).unwrap()).await.unwrap();
        let mut written = 0;
        while let Ok(taken) = near.try_write(&[IoSlice::new(&[b'x'; 4_096])]) {
            written += taken;
        }
        assert!(near.has_unsent(), "the socket is full");
        let finish = near.finish();
        let read = async { go.send(()).unwrap() };
        pair::both(well(finish), well(read)).await.unwrap();
        drop(near);
        assert_eq!(browser.join().unwrap().unwrap(), written);
    });
}

/// What cannot fail, for [`pair::both`].
async fn well(future: impl Future<Output = ()>) -> Result<(), ()> {
    future.await;
    Ok(())
}

#[test]
fn records_without_content_do_not_keep_a_shard() {
    on_both_drivers(|| async {
        let (client, mut server) = configs();
        // 300 KB, all of which the sockets hold.
        server.send_tls13_tickets = 3_500;
        let (mut near, mut far) = pair(200 * 1024);
        let (tell, told) = mpsc::channel();
        let site = std::thread::spawn(move || {
            let mut connection = ServerConnection::new(Arc::new(server)).unwrap();
            connection.set_buffer_limit(None);
            while connection.is_handshaking() {
                connection.complete_io(&mut far).unwrap();
            }
            let mut stream = StreamOwned::new(connection, far);
            stream.write_all(b"content").unwrap();
            stream.flush().unwrap();
            tell.send(stream).unwrap();
        });
        near.secure(Tls::client(Arc::new(client), name()).unwrap())
            .await
            .unwrap();
        let _site = told.recv_timeout(PATIENCE).unwrap();
        site.join().unwrap();
        let mut buffers = [BytesMut::with_capacity(64)];
        // Another task of the shard has its turns meanwhile.
        let turns = Rc::new(Cell::new(0));
        let taken = turns.clone();
        runtime::spawn(async move {
            for _ in 0..1_000 {
                taken.set(taken.get() + 1);
                runtime::yield_now().await;
            }
        });
        while let Err(e) = near.try_read(&mut buffers, 64) {
            assert_eq!(e.kind(), ErrorKind::WouldBlock);
            near.readable().await.unwrap();
        }
        assert_eq!(&buffers[0][..], b"content");
        assert!(turns.get() > 0);
    });
}
