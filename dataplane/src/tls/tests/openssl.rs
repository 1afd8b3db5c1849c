//! The `openssl` program as the peer, over loopback TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use super::cases::{Verdict, cases};
use super::*;

/// Longest wait for the other process.
const PATIENCE: Duration = Duration::from_secs(20);

/// A key pair in files, for the program.
struct KeyFiles {
    folder: tempfile::TempDir,
    fingerprint: Fingerprint,
}

impl KeyFiles {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let params = CertificateParams::new(Vec::new()).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
            fingerprint: Fingerprint::of_certificate(certificate.der()).unwrap(),
        };
        std::fs::write(files.key(), key.serialize_pem()).unwrap();
        std::fs::write(files.certificate(), certificate.pem()).unwrap();
        files
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }
}

/// A running `openssl`; killed when dropped.
struct Program {
    child: Child,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Program {
    fn start(command: &str, arguments: &[&str], files: &KeyFiles) -> Self {
        let mut child = Command::new("openssl")
            .arg(command)
            .args(["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"])
            .args(["-alpn", "culvert"])
            .arg("-cert")
            .arg(files.certificate())
            .arg("-key")
            .arg(files.key())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the openssl program is needed");
        let stdin = child.stdin.take().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (pieces, output) = channel();
        std::thread::spawn(move || {
            let mut piece = [0; 65_536];
            while let Ok(length @ 1..) = stdout.read(&mut piece) {
                if pieces.send(piece[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            stdin,
            output,
            seen: Vec::new(),
        }
    }

    fn client(port: u16, arguments: &[&str], files: &KeyFiles) -> Self {
        let address = format!("127.0.0.1:{port}");
        let fixed = ["-connect", &address, "-servername", NAME];
        Self::start("s_client", &[&fixed, arguments].concat(), files)
    }

    /// Returns the port too.
    fn server(arguments: &[&str], files: &KeyFiles) -> (Self, u16) {
        let fixed = ["-accept", "127.0.0.1:0", "-naccept", "1", "-Verify", "1"];
        let mut server = Self::start("s_server", &[&fixed, arguments].concat(), files);
        assert!(server.shows(|seen| port(seen).is_some()), "no port");
        let port = port(&server.seen).unwrap();
        (server, port)
    }

    fn type_in(&mut self, text: &[u8]) {
        self.stdin.write_all(text).unwrap();
        self.stdin.flush().unwrap();
    }

    /// Reads its output until `wanted`; false if it ends before.
    fn shows(&mut self, wanted: impl Fn(&[u8]) -> bool) -> bool {
        let end = Instant::now() + PATIENCE;
        while !wanted(&self.seen) {
            match self.output.recv_timeout(end - Instant::now()) {
                Ok(piece) => self.seen.extend(piece),
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => panic!("openssl says nothing more"),
            }
        }
        true
    }

    fn shows_text(&mut self, text: &[u8]) -> bool {
        self.shows(|seen| memchr::memmem::find(seen, text).is_some())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails only when it has left by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// From the line `ACCEPT 127.0.0.1:PORT`.
fn port(seen: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(seen).ok()?;
    let (_, rest) = text.split_once("ACCEPT 127.0.0.1:")?;
    rest.split_once('\n')?.0.trim().parse().ok()
}

/// Our end on a socket.
struct Wire {
    stream: TcpStream,
    half: Half,
    now: u64,
}

impl Wire {
    /// Shakes hands; an alert that is due leaves before the error is returned.
    fn shake(mut stream: TcpStream, mut handshake: Handshake) -> Result<Self, Error> {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut input = BytesMut::new();
        loop {
            let result = handshake.handle(&mut input);
            if let Some(bytes) = handshake.output() {
                stream.write_all(&bytes).unwrap();
            }
            if result? == Progress::Done {
                let half = Half::new(handshake, input);
                return Ok(Self { stream, half, now: 0 });
            }
            if !read(&mut stream, &mut input) {
                return Err(Error::Closed("handshake"));
            }
        }
    }

    fn dial(port: u16, pin: Fingerprint) -> Result<Self, Error> {
        let config = client_config(&Identity::generate()?, pin)?;
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        Self::shake(stream, Handshake::client(config, NAME)?)
    }

    fn send(&mut self, bytes: &[u8]) {
        // A peer that refused us may be gone already.
        let _ = self.stream.write_all(bytes);
    }

    fn send_data(&mut self, data: &[u8]) {
        let frames: Vec<_> = data.chunks(16_384).map(Bytes::copy_from_slice).collect();
        let bytes = self.half.seal(&frames);
        self.send(&bytes);
    }

    /// The next record; each one comes a virtual second after the one before.
    fn next(&mut self) -> Result<Option<Record>, Error> {
        loop {
            self.now += 1;
            let now = second(self.now);
            if let Some(record) = self.half.opener.open(now, &mut self.half.input)? {
                return Ok(Some(record));
            }
            if self.half.opener.is_closed() || !read(&mut self.stream, &mut self.half.input) {
                return Ok(None);
            }
        }
    }

    /// Data until `wanted` bytes are there; KeyUpdates that ask for one are answered.
    fn receive(&mut self, wanted: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < wanted {
            match self.next().unwrap() {
                Some(Record::Data(bytes)) => data.extend_from_slice(&bytes),
                Some(Record::KeyUpdate { respond: true }) => self.update_key(),
                Some(Record::KeyUpdate { respond: false }) => {}
                Some(Record::Closed) | None => panic!("ended after {} bytes", data.len()),
            }
        }
        data
    }

    fn update_key(&mut self) {
        let mut out = Vec::new();
        self.half.sealer.key_update(&mut out).unwrap();
        self.send(&out);
    }

    fn close(&mut self) {
        let mut out = Vec::new();
        self.half.sealer.close_notify(&mut out).unwrap();
        self.send(&out);
    }
}

/// False at the end.
fn read(stream: &mut TcpStream, input: &mut BytesMut) -> bool {
    let mut piece = [0; 65_536];
    match stream.read(&mut piece) {
        Ok(length) => {
            input.extend_from_slice(&piece[..length]);
            length > 0
        }
        Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
        Err(error) => panic!("{error}"),
    }
}

/// Our server and an `s_client` that dials it.
fn accept(
    arguments: &[&str],
    pins: impl Fn(&Fingerprint) -> bool + Send + Sync + 'static,
) -> (Result<Wire, Error>, Program) {
    accept_with(arguments, &KeyFiles::new(), pins)
}

fn accept_with(
    arguments: &[&str],
    files: &KeyFiles,
    pins: impl Fn(&Fingerprint) -> bool + Send + Sync + 'static,
) -> (Result<Wire, Error>, Program) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let program = Program::client(port, arguments, files);
    let (stream, _) = listener.accept().unwrap();
    let config = server_config(&Identity::generate().unwrap(), Arc::new(pins)).unwrap();
    (Wire::shake(stream, Handshake::server(config).unwrap()), program)
}

#[test]
fn an_openssl_client_exchanges_data_and_keys_with_us() {
    let (wire, mut program) = accept(&[], |_| true);
    let mut wire = wire.unwrap();
    program.type_in(b"first line\n");
    assert_eq!(wire.receive(11), b"first line\n");
    wire.send_data(b"our first line\n");
    assert!(program.shows_text(b"our first line\n"));
    // `K` changes its key and asks for ours, `k` only changes its own.
    for (command, line) in [(b"K\n", b"after K\n"), (b"k\n", b"after k\n")] {
        program.type_in(command);
        // A command is recognised at the start of what one read brings.
        match wire.next().unwrap() {
            Some(Record::KeyUpdate { respond }) => {
                assert_eq!(respond, command[0] == b'K');
                if respond {
                    wire.update_key();
                }
            }
            other => panic!("{other:?}"),
        }
        program.type_in(line);
        assert_eq!(wire.receive(8), line);
        wire.send_data(&[b"ours ", &line[..]].concat());
        assert!(program.shows_text(&[b"ours ", &line[..]].concat()));
    }
    program.type_in(b"Q\n");
    assert_eq!(wire.next().unwrap(), Some(Record::Closed));
}

#[test]
fn an_openssl_server_exchanges_data_and_keys_with_us() {
    let files = KeyFiles::new();
    let (mut program, port) = Program::server(&["-num_tickets", "0"], &files);
    let mut wire = Wire::dial(port, files.fingerprint).unwrap();
    wire.send_data(b"our first line\n");
    assert!(program.shows_text(b"our first line\n"));
    program.type_in(b"first line\n");
    assert_eq!(wire.receive(11), b"first line\n");
    for round in 0..3 {
        wire.update_key();
        let line = format!("under key {round}\n");
        wire.send_data(line.as_bytes());
        assert!(program.shows_text(line.as_bytes()));
    }
    for (command, line) in [(b"K\n", b"after K\n"), (b"k\n", b"after k\n")] {
        program.type_in(command);
        let Some(Record::KeyUpdate { respond }) = wire.next().unwrap() else {
            panic!("no KeyUpdate");
        };
        assert_eq!(respond, command[0] == b'K');
        if respond {
            wire.update_key();
        }
        program.type_in(line);
        assert_eq!(wire.receive(8), line);
        wire.send_data(&[b"ours ", &line[..]].concat());
        assert!(program.shows_text(&[b"ours ", &line[..]].concat()));
    }
    wire.close();
    assert!(program.shows_text(b"CONNECTION CLOSED"));
}

/// 8 MiB each way with an OpenSSL that checks each new key of ours.
#[test]
fn bulk_crosses_to_openssl_and_back_under_many_keys() {
    const END: &[u8] = b"the end\n";
    let data = [&pattern(8 << 20, 7)[..], END].concat();
    let files = KeyFiles::new();
    let (mut program, port) = Program::server(&["-num_tickets", "0"], &files);
    let mut wire = Wire::dial(port, files.fingerprint).unwrap();
    wire.half.sealer.rekey_after(100);
    wire.send_data(&data);
    assert!(program.shows(|seen| seen.ends_with(END)));
    let shown = without(&program.seen, b"Read BLOCK\n");
    assert!(shown.ends_with(&data), "to OpenSSL");

    let (wire, mut program) = accept(&["-quiet"], |_| true);
    let mut wire = wire.unwrap();
    let sent = data.clone();
    let typing = std::thread::spawn(move || {
        program.type_in(&sent);
        program
    });
    let received = wire.receive(data.len());
    assert!(received == data, "from OpenSSL");
    drop(typing.join().unwrap());
}

/// `s_server` says this each time a KeyUpdate made it wait.
fn without(seen: &[u8], remark: &[u8]) -> Vec<u8> {
    let mut left = Vec::with_capacity(seen.len());
    let mut rest = seen;
    while let Some(place) = memchr::memmem::find(rest, remark) {
        left.extend_from_slice(&rest[..place]);
        rest = &rest[place + remark.len()..];
    }
    left.extend_from_slice(rest);
    left
}

#[test]
fn an_openssl_server_with_another_key_is_refused() {
    let files = KeyFiles::new();
    let (_program, port) = Program::server(&[], &files);
    let wrong = Identity::generate().unwrap().fingerprint();
    let error = Wire::dial(port, wrong).err().unwrap();
    assert_eq!(error.to_string(), format!("TLS: {WRONG_KEY}"));
}

#[test]
fn an_openssl_client_is_known_by_its_key_alone() {
    let files = KeyFiles::new();
    let pin = files.fingerprint;
    let (wire, mut program) = accept_with(&[], &files, move |shown| *shown == pin);
    wire.unwrap().send_data(b"welcome\n");
    assert!(program.shows_text(b"welcome\n"));

    let (wire, mut program) = accept(&[], move |shown| *shown == pin);
    assert_eq!(wire.err().unwrap().to_string(), format!("TLS: {WRONG_KEY}"));
    assert!(!program.shows_text(b"welcome\n"));
}

/// As OpenSSL does unless it is told not to: two tickets right behind the handshake.
#[test]
fn tickets_of_an_openssl_server_are_refused() {
    let files = KeyFiles::new();
    let (_program, port) = Program::server(&[], &files);
    let mut wire = Wire::dial(port, files.fingerprint).unwrap();
    let error = wire.next().unwrap_err();
    assert!(error.to_string().contains("other than KeyUpdate"), "{error}");
}

/// The odd records of `cases`, judged by OpenSSL.
#[test]
fn openssl_agrees_on_odd_records() {
    let files = KeyFiles::new();
    for case in cases() {
        let Some(goes_on) = case.openssl else {
            continue;
        };
        let (mut program, port) = Program::server(&["-num_tickets", "0"], &files);
        let mut wire = Wire::dial(port, files.fingerprint).unwrap();
        let mut out = wire.half.seal_raw(&case.inner);
        if case.ours == Verdict::KeyUpdate {
            wire.half.sealer.change_key().unwrap();
        }
        out.extend(wire.half.seal(&[Bytes::from_static(b"behind it\n")]));
        wire.send(&out);
        // Else the program waits half a second for our end; fails only if it has left already.
        let _ = wire.stream.shutdown(Shutdown::Write);
        let delivered = program.shows(|seen| {
            [&b"behind it\n"[..], b"CONNECTION CLOSED"]
                .iter()
                .any(|text| memchr::memmem::find(seen, text).is_some())
        }) && memchr::memmem::find(&program.seen, b"behind it\n").is_some();
        // Data behind close_notify is not delivered either.
        let expected = goes_on && case.ours != Verdict::Closed;
        assert_eq!(delivered, expected, "{}", case.name);
    }
}
