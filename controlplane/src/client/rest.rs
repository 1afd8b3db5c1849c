//! The calls of the cloud's REST API that `sc` makes, each bounded in time and size.

use std::path::Path;
use std::sync::Arc;

use dataplane::limits::{REST_CALL_MAX, REST_CONNECT_MAX, REST_ERROR_CHARS_MAX};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Failure;
use crate::api::{self, Heartbeat, Outcome, Tunnel, TunnelRequest};
use crate::config::Config;
use crate::secret::Secret;

/// An answer; a tunnel object repeats all rules of its request.
const ANSWER_BYTES_MAX: usize = api::BODY_BYTES_MAX + 256 * 1024;

/// A call that gave no usable answer.
#[derive(Debug, PartialEq, Eq)]
pub enum RestError {
    /// No answer: name, connection, TLS or time; the cause in a few words.
    Unreachable(String),
    /// Any answer but 200, with its `error` text where it has one.
    Status(u16, Option<String>),
    /// 200 with a body that is not what was asked for.
    Garbage(String),
}

impl std::fmt::Display for RestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(cause) => f.write_str(cause),
            Self::Status(code, Some(text)) => write!(f, "{text} (HTTP {code})"),
            Self::Status(code, None) => write!(f, "HTTP {code}"),
            Self::Garbage(what) => write!(f, "the answer is not understood: {what}"),
        }
    }
}

/// One account's view of the API.
pub struct Rest {
    http: Client,
    base: Url,
    user: String,
    key: Secret,
}

impl Rest {
    /// Reads the roots to trust.
    ///
    /// # Errors
    /// [`Failure::Usage`] if `--cainfo` cannot be read or holds no certificate.
    pub fn new(config: &Config) -> Result<Self, Failure> {
        let tls = tls_config(config.cainfo.as_deref())?;
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            // Proxies from the environment are not taken unasked.
            .no_proxy()
            // A redirect would carry the key to somewhere else.
            .redirect(redirect::Policy::none())
            .connect_timeout(REST_CONNECT_MAX)
            .timeout(REST_CALL_MAX)
            .user_agent(concat!("culvert-sc/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Failure::Internal(format!("REST client: {}", cause(&e))))?;
        Ok(Self {
            http,
            base: config.rest_url.clone(),
            user: config.user.clone(),
            key: config.key.clone(),
        })
    }

    /// `POST /{user}/tunnels`.
    ///
    /// # Errors
    /// [`RestError`], as all calls here.
    pub async fn create(&self, request: &TunnelRequest) -> Result<Tunnel, RestError> {
        self.call(Method::POST, &[], &[], Some(request)).await
    }

    /// `GET /{user}/tunnels?full=1`.
    pub async fn tunnels(&self) -> Result<Vec<Tunnel>, RestError> {
        let nothing: Option<&()> = None;
        self.call(Method::GET, &[], &[("full", "1")], nothing).await
    }

    /// `GET /{user}/tunnels/{id}`.
    pub async fn tunnel(&self, id: &str) -> Result<Tunnel, RestError> {
        self.get(&[id]).await
    }

    /// `GET /{user}/tunnels/{id}/num_jobs`.
    pub async fn jobs_running(&self, id: &str) -> Result<u64, RestError> {
        let outcome: Outcome = self.get(&[id, "num_jobs"]).await?;
        Ok(outcome.jobs_running.unwrap_or(0))
    }

    /// `POST /{user}/tunnels/{id}/connected`; false means that the tunnel is gone.
    pub async fn heartbeat(&self, id: &str, beat: &Heartbeat) -> Result<bool, RestError> {
        let outcome: Outcome = self.call(Method::POST, &[id, "connected"], &[], Some(beat)).await?;
        Ok(outcome.result.unwrap_or(true))
    }

    /// `DELETE /{user}/tunnels/{id}`; the jobs were waited for before.
    pub async fn delete(&self, id: &str, reason: &str) -> Result<(), RestError> {
        let query = [("reason", reason), ("wait", "0")];
        let nothing: Option<&()> = None;
        let _: Outcome = self.call(Method::DELETE, &[id], &query, nothing).await?;
        Ok(())
    }

    /// Where the API is, for messages.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// Whose tunnels it sees, for messages.
    pub fn user(&self) -> &str {
        &self.user
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, RestError> {
        let nothing: Option<&()> = None;
        self.call(Method::GET, path, &[], nothing).await
    }

    /// One call under `/{user}/tunnels`.
    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&B>,
    ) -> Result<T, RestError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(&self.user).push("tunnels").extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        tracing::debug!("REST {method} {url}");
        let mut request = self
            .http
            .request(method, url)
            .basic_auth(&self.user, Some(self.key.expose()));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        tracing::debug!("REST answer {status}");
        let bytes = read(response).await?;
        if status != StatusCode::OK {
            return Err(RestError::Status(status.as_u16(), error_text(&bytes)));
        }
        serde_json::from_slice(&bytes).map_err(|e| RestError::Garbage(e.to_string()))
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, RestError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
            let text = format!("more than {ANSWER_BYTES_MAX} bytes");
            return Err(RestError::Garbage(text));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn error_text(body: &[u8]) -> Option<String> {
    let answer: api::Failure = serde_json::from_slice(body).ok()?;
    let text = answer.error?;
    Some(text.chars().take(REST_ERROR_CHARS_MAX).collect())
}

fn unreachable(e: reqwest::Error) -> RestError {
    RestError::Unreachable(cause(&e))
}

/// The innermost cause, which is the one that a user can do something about; no URL, no repetition.
fn cause(e: &reqwest::Error) -> String {
    if e.is_timeout() {
        return format!("no answer within {} s", REST_CALL_MAX.as_secs());
    }
    let mut inner: &dyn std::error::Error = e;
    while let Some(next) = inner.source() {
        inner = next;
    }
    let text = inner.to_string();
    if text.contains("InvalidContentType") {
        return format!("what answers there speaks no TLS ({text})");
    }
    if text.contains("UnknownIssuer") {
        return format!("{text} (name the cloud's own CA with --cainfo FILE)");
    }
    text
}

/// TLS for REST, by rustls with aws-lc-rs like the links. The roots are read by `rustls-native-certs`: the bundle
/// file of the distribution, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` name, so that a company's own roots count.
/// A bundle compiled in would miss those and grow old; the platform verifier does the same on Linux, but cannot say
/// which file was bad.
fn tls_config(cainfo: Option<&Path>) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!("system roots: {error}");
    }
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!("system roots: {added} trusted, {ignored} not understood");
    if let Some(path) = cainfo {
        add_file(&mut roots, path).map_err(|e| Failure::Usage(format!("--cainfo: {}: {e}", path.display())))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::Internal(format!("TLS: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| match e {
        rustls_pki_types::pem::Error::Io(e) => e.to_string(),
        e => e.to_string(),
    })?;
    let mut count = 0;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| e.to_string())?;
        roots.add(certificate).map_err(|e| e.to_string())?;
        count += 1;
    }
    if count == 0 {
        return Err("no certificate in it".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cainfo_must_hold_certificates() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let text = |path: &Path| tls_config(Some(path)).map(|_| ()).unwrap_err().to_string();
        assert!(text(&path).contains("No such file"));
        std::fs::write(&path, "nothing").unwrap();
        assert!(text(&path).contains("no certificate in it"));
        let key = rcgen::generate_simple_self_signed(["h".to_string()]).unwrap();
        std::fs::write(&path, key.cert.pem()).unwrap();
        tls_config(Some(&path)).unwrap();
    }

    #[test]
    fn error_texts_are_bounded() {
        let long = format!("{{\"error\": \"{}\"}}", "x".repeat(1_000));
        assert_eq!(error_text(long.as_bytes()).unwrap().len(), 300);
        assert_eq!(error_text(b"<html>"), None);
        assert_eq!(error_text(b"{}"), None);
    }
}
