//! The front: it sorts every kind of ClientHello, and nobody who is slow, silent or idle keeps others from REST.

use controlplane::cloud::limits::REST_OF_ONE_MAX;
use dataplane::limits::{CLIENT_HELLO_BYTES_MAX, CLIENT_HELLO_MAX};

use super::*;

/// A ClientHello for `name`.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// `hello` with its message in records of `size` bytes.
fn fragment(hello: &[u8], size: usize) -> Vec<u8> {
    hello[5..]
        .chunks(size)
        .flat_map(|part| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat())
        .collect()
}

fn answer_to(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];

/// TLS of a client that trusts this cloud only.
fn trusting(cloud: &Cloud) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject;
    let pem = std::fs::read(cloud.state.path().join("ca.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    config.with_no_client_auth().into()
}

#[test]
fn the_front_sorts_every_hello() {
    let cloud = Cloud::start();
    let id = cloud.create(json!({"culvert": {"fingerprint": FINGERPRINT}}));
    cloud.running(&id);
    let unknown = "0".repeat(32);
    for name in [
        format!("0.{unknown}.tunnel.culvert"),
        format!("{id}.tunnel.culvert"),
        format!("16.{id}.tunnel.culvert"),
        format!("00.{id}.tunnel.culvert"),
    ] {
        assert_eq!(answer_to(cloud.dial(), &hello(&name)), UNRECOGNIZED_NAME, "{name}");
        assert_eq!(
            answer_to(cloud.dial(), &fragment(&hello(&name), 7)),
            UNRECOGNIZED_NAME,
            "{name}"
        );
    }
    assert_eq!(answer_to(cloud.dial(), &[22, 3, 1, 0, 0]), DECODE_ERROR);
    assert_eq!(answer_to(cloud.dial(), &[0; 40_000])[..7], DECODE_ERROR);
    assert_eq!(answer_to(cloud.dial(), &[22; 10]), DECODE_ERROR);
    // One byte more than a record may have.
    assert_eq!(answer_to(cloud.dial(), &[22, 3, 1, 0x40, 1]), DECODE_ERROR);
    let long = |length: usize| {
        let header = (1 << 24 | length as u32).to_be_bytes();
        [&[22, 3, 1, 0, 0][..], &header, vec![0; length].as_slice()].concat()
    };
    // A message that says that it is too long, and one that fits, but not with the records around it.
    for (length, size) in [(CLIENT_HELLO_BYTES_MAX, 4_096), (CLIENT_HELLO_BYTES_MAX - 4, 16)] {
        let records = fragment(&long(length), size);
        assert!(records.len() > CLIENT_HELLO_BYTES_MAX);
        assert_eq!(answer_to(cloud.dial(), &records), DECODE_ERROR, "{length}");
    }
    let plain = answer_to(cloud.dial(), b"GET /rest/v1 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(
        plain.starts_with(b"HTTP/1.1 400 "),
        "{}",
        String::from_utf8_lossy(&plain)
    );
    drop(cloud.dial());
}

#[test]
fn a_hello_that_trickles_is_ended_at_its_time_limit() {
    let cloud = Cloud::start();
    let begun = Instant::now();
    let mut stream = cloud.dial();
    // The pace: nothing comes before the end.
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let ended = hello("localhost").into_iter().any(|byte| {
        assert!(
            begun.elapsed() < CLIENT_HELLO_MAX + Duration::from_secs(5),
            "it is never ended"
        );
        match stream.write_all(&[byte]).and_then(|()| stream.read(&mut [0])) {
            Ok(bytes) => bytes == 0,
            Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
        }
    });
    let took = begun.elapsed();
    assert!(ended && took >= CLIENT_HELLO_MAX, "{took:?}");
    assert_eq!(cloud.call("GET", "ada/tunnels", None).body, json!([]));
}

#[test]
fn rest_is_reached_with_a_hello_in_pieces_and_beside_slow_clients() {
    let cloud = Cloud::start();
    // They never finish, and are closed at their time limit; meanwhile others are served.
    let slow: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = cloud.dial();
            stream.write_all(&[22, 3, 1]).unwrap();
            stream
        })
        .collect();
    let mut tls = rustls::ClientConnection::new(trusting(&cloud), "localhost".try_into().unwrap()).unwrap();
    let mut stream = cloud.dial();
    stream.set_nodelay(true).unwrap();
    let mut first = Vec::new();
    tls.write_tls(&mut first).unwrap();
    for byte in fragment(&first, 100) {
        stream.write_all(&[byte]).unwrap();
    }
    let mut session = rustls::Stream::new(&mut tls, &mut stream);
    session
        .write_all(b"GET /rest/v1/ada/tunnels HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    session.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(answer.to_lowercase().contains("www-authenticate: basic"), "{answer}");
    let mut end = Vec::new();
    for mut stream in slow {
        let _ = stream.read_to_end(&mut end);
    }
}

#[test]
fn silent_connections_keep_nobody_of_their_address_from_rest() {
    let cloud = Cloud::start();
    let silent: Vec<_> = (0..300).map(|_| cloud.dial()).collect();
    assert_eq!(cloud.call("GET", "ada/tunnels", None).body, json!([]));
    let mut closed = silent.into_iter().take(40);
    // Long before the time limit of the others.
    assert!(closed.all(|mut oldest| matches!(oldest.read(&mut [0]), Ok(0) | Err(_))));
}

#[test]
fn idle_connections_keep_nobody_of_their_address_from_rest() {
    let cloud = Cloud::start();
    let config = trusting(&cloud);
    let idle: Vec<_> = (0..REST_OF_ONE_MAX)
        .map(|n| {
            let mut tls = rustls::ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
            let mut stream = cloud.dial();
            while tls.is_handshaking() {
                tls.complete_io(&mut stream).unwrap();
            }
            // Every other one waits in the middle of a request.
            if n % 2 == 0 {
                rustls::Stream::new(&mut tls, &mut stream).write_all(b"GET /").unwrap();
            }
            stream
        })
        .collect();
    assert_eq!(cloud.call("GET", "ada/tunnels", None).body, json!([]));
    let mut oldest = &idle[0];
    assert!(oldest.read_to_end(&mut Vec::new()).is_ok(), "not closed");
}
