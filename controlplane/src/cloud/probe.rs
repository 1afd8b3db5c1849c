//! The self-test: "up" is said only after a request has gone through the whole path and back.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::broker::Listener;
use super::limits::{PROBE_ANSWER_BYTES_MAX, PROBE_ATTEMPT_MAX, PROBE_BACKOFF_MAX, PROBE_BACKOFF_MIN};
use crate::secret;

/// Asks over the links of `member` until the answer is right; the caller drops this when nobody needs it any more.
pub async fn run(listener: Arc<Listener>, member: &str) {
    let mut backoff = PROBE_BACKOFF_MIN;
    loop {
        match tokio::time::timeout(PROBE_ATTEMPT_MAX, attempt(&listener, member)).await {
            Ok(Ok(())) => return,
            Ok(Err(e)) => tracing::debug!(port = listener.address.port(), "self-test: {e}"),
            Err(_) => tracing::debug!(port = listener.address.port(), "self-test: no answer"),
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(PROBE_BACKOFF_MAX);
    }
}

async fn attempt(listener: &Arc<Listener>, member: &str) -> io::Result<()> {
    let nonce = secret::random_hex().map_err(io::Error::other)?;
    let mut probe = listener.probe().await?;
    let request = format!(
        "GET http://probe.culvert.invalid/{member}/{nonce} HTTP/1.1\r\nHost: probe.culvert.invalid\r\nConnection: close\r\n\r\n"
    );
    probe.stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut stream = probe.stream.take(PROBE_ANSWER_BYTES_MAX);
    while !is_good(&answer, &nonce) {
        if stream.read_buf(&mut answer).await? == 0 {
            let line = answer.split(|&b| b == b'\r').next().unwrap_or_default();
            return Err(io::Error::other(format!(
                "answered {:?}",
                String::from_utf8_lossy(line)
            )));
        }
    }
    Ok(())
}

/// Status 200, and the nonce in the body.
fn is_good(answer: &[u8], nonce: &str) -> bool {
    let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else {
        return false;
    };
    answer.starts_with(b"HTTP/1.1 200 ") && answer[head + 4..].windows(nonce.len()).any(|w| w == nonce.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nonce_behind_a_200_counts() {
        assert!(is_good(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nabc", "abc"));
        for bad in [
            "HTTP/1.1 200 OK\r\nA: abc\r\n\r\n",
            "HTTP/1.1 503 No\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nabc",
            "abc",
            "",
        ] {
            assert!(!is_good(bad.as_bytes(), "abc"), "{bad}");
        }
    }
}
