//! The calls of the cloud's REST API that `sc` makes, each bounded in time and size.

use std::sync::Arc;

use dataplane::limits::{REST_CALL_MAX, REST_CONNECT_MAX, REST_ERROR_CHARS_MAX};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Failure, trust};
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
    /// Trusts the system's roots and those of `--cainfo`.
    ///
    /// # Errors
    /// [`Failure::Usage`] if `--cainfo` cannot be read or holds no certificate.
    pub fn new(config: &Config, system: &RootCertStore) -> Result<Self, Failure> {
        let mut roots = system.clone();
        if let Some(path) = &config.cainfo {
            trust::add_file(&mut roots, "cainfo", path)?;
        }
        let tls = tls_config(roots)?;
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

/// TLS for REST, by rustls with aws-lc-rs like the links.
fn tls_config(roots: RootCertStore) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::Internal(format!("TLS: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_texts_are_bounded() {
        let long = format!("{{\"error\": \"{}\"}}", "x".repeat(1_000));
        assert_eq!(error_text(long.as_bytes()).unwrap().len(), 300);
        assert_eq!(error_text(b"<html>"), None);
        assert_eq!(error_text(b"{}"), None);
    }
}
