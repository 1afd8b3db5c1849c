//! A cloud that is only a REST API, as a test wants it.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// A call that does not come within this time is a failure.
const CALL_MAX: Duration = Duration::from_secs(30);

/// A request as it came.
pub struct Call {
    pub line: String,
    pub head: String,
    pub body: Value,
}

/// What the API answers, and what it was asked.
pub struct Api {
    /// Answers to POST, in order; the last one stays.
    pub create: Vec<(u16, Value)>,
    /// Answer to GET of the tunnel.
    pub tunnel: (u16, Value),
    pub jobs: u64,
    pub calls: Vec<Call>,
}

impl Api {
    /// Calls whose request line starts with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        self.calls.iter().filter(|c| c.line.starts_with(prefix)).count()
    }

    /// Whether the number of running jobs was asked for.
    pub fn jobs_asked(&mut self) -> bool {
        self.calls.iter().any(|c| c.line.contains("/num_jobs "))
    }
}

/// A running stub; it ends when dropped.
pub struct Stub {
    pub url: String,
    pub address: SocketAddr,
    /// The certificate, if it speaks TLS.
    pub ca: String,
    api: Arc<(Mutex<Api>, Condvar)>,
    _stop: oneshot::Sender<()>,
}

impl Stub {
    pub fn start() -> Self {
        Self::with(None, String::new(), "http")
    }

    /// With a certificate for 127.0.0.1 that nobody knows.
    pub fn start_tls() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_string()]).expect("key");
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("certificate");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        Self::with(Some(acceptor), made.cert.pem(), "https")
    }

    fn with(tls: Option<tokio_rustls::TlsAcceptor>, ca: String, scheme: &str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("address");
        let api = Mutex::new(Api {
            create: vec![(200, tunnel("new", false, address))],
            tunnel: (200, tunnel("running", true, address)),
            jobs: 0,
            calls: Vec::new(),
        });
        let api = Arc::new((api, Condvar::new()));
        let (stop, stopped) = oneshot::channel();
        let shared = api.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("listener");
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, tls, shared) => {}
                }
            });
        });
        Self {
            url: format!("{scheme}://{address}/rest/v1"),
            address,
            ca,
            api,
            _stop: stop,
        }
    }

    pub fn api(&self) -> MutexGuard<'_, Api> {
        self.api.0.lock().expect("api")
    }

    /// Waits for a call that makes `done` true.
    pub fn wait(&self, mut done: impl FnMut(&mut Api) -> bool) {
        let (api, called) = &*self.api;
        let waiting = called
            .wait_timeout_while(api.lock().expect("api"), CALL_MAX, |api| !done(api))
            .expect("api");
        assert!(!waiting.1.timed_out(), "the call does not come");
    }
}

/// A tunnel object.
pub fn tunnel(status: &str, ready: bool, address: SocketAddr) -> Value {
    let culvert = json!({
        "address": address.to_string(),
        "server_name": "0123456789abcdef0123456789abcdef.tunnel.culvert",
        "fingerprint": "ab".repeat(32),
        "shards": 1,
        "links_max": 4,
    });
    json!({
        "id": "0123456789abcdef0123456789abcdef",
        "status": status,
        "is_ready": ready,
        "user_shutdown": null,
        "culvert": if status == "running" { culvert } else { Value::Null },
        "of_a_later_version": [1, {}],
    })
}

async fn accept(listener: TcpListener, tls: Option<tokio_rustls::TlsAcceptor>, api: Arc<(Mutex<Api>, Condvar)>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, api) = (tls.clone(), api.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(tcp, &api).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(tcp).await {
                        serve(stream, &api).await;
                    }
                }
            }
        });
    }
}

/// An endpoint that takes every link, with a key that REST never named.
pub struct Impostor {
    pub address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Impostor {
    pub fn start() -> Self {
        let identity = dataplane::tls::Identity::generate().expect("key");
        let config = dataplane::tls::server_config(&identity, Arc::new(|_: &_| true));
        let acceptor = tokio_rustls::TlsAcceptor::from(config.expect("configuration"));
        let Stub { address, _stop, .. } = Stub::with(Some(acceptor), String::new(), "https");
        Self { address, _stop }
    }
}

/// One request a connection; what is no HTTP is closed.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, api: &(Mutex<Api>, Condvar)) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        if let Some(parts) = split(&bytes) {
            break parts;
        }
        match stream.read_buf(&mut bytes).await {
            Ok(n) if n > 0 && bytes.len() < REQUEST_BYTES_MAX => {}
            _ => return,
        }
        if bytes[0] == 0x16 {
            return;
        }
    };
    let line = head.lines().next().unwrap_or_default().to_owned();
    let (code, answer) = answer(&mut api.0.lock().expect("api"), Call { line, head, body });
    api.1.notify_all();
    let text = answer.to_string();
    let length = text.len();
    let head = format!(
        "HTTP/1.1 {code} x\r\nLocation: http://127.0.0.2:1/\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let _ = stream.write_all((head + &text).as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn split(bytes: &[u8]) -> Option<(String, Value)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap_or(0));
    let whole = body.len() >= length;
    whole.then(|| (head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null)))
}

fn answer(api: &mut Api, call: Call) -> (u16, Value) {
    const ONE: &str = "/rest/v1/U/tunnels/0123456789abcdef0123456789abcdef";
    let mut words = call.line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    api.calls.push(call);
    let path = target.split('?').next().unwrap_or_default();
    match (method.as_str(), path.strip_prefix(ONE)) {
        ("GET", Some("")) => api.tunnel.clone(),
        ("GET", Some("/num_jobs")) => (200, json!({"id": "x", "jobs_running": api.jobs})),
        ("POST", Some("/connected")) => (200, json!({"id": "x", "result": true})),
        ("DELETE", Some("")) => {
            api.tunnel = (404, json!({"error": "no such tunnel"}));
            (200, json!({"id": "x", "result": true, "jobs_running": api.jobs}))
        }
        ("POST", None) if path == "/rest/v1/U/tunnels" => {
            let next = api.create[0].clone();
            if api.create.len() > 1 {
                api.create.remove(0);
            }
            next
        }
        _ => (404, json!({"error": format!("nothing at {target}")})),
    }
}
