//! Chromium and chromedriver.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use rustix::process::geteuid;
use serde_json::{Value, json};

use super::trust;

pub fn driver(home: &Path, trusted_pems: &[&str]) -> Command {
    trust(&home.join(".pki/nssdb"), trusted_pems);
    let mut command = Command::new("chromedriver");
    command.arg("--port=0");
    command
}

pub fn port(line: &str) -> Option<u16> {
    let port = line.strip_prefix("ChromeDriver was started successfully on port ")?;
    port.trim_end_matches('.').parse().ok()
}

pub fn capabilities(proxy: SocketAddr) -> Value {
    let mut arguments = vec![
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ];
    if geteuid().is_root() {
        // Chromium's own sandbox does not start as root; nothing but the test's page is loaded.
        arguments.push("--no-sandbox");
    }
    let proxy = proxy.to_string();
    json!({
        "browserName": "chrome",
        "proxy": { "proxyType": "manual", "httpProxy": proxy, "sslProxy": proxy, "noProxy": ["<-loopback>"] },
        "goog:chromeOptions": { "args": arguments, "binary": binary() },
    })
}

/// Debian's `/usr/bin/chromium` is a script around it.
fn binary() -> &'static str {
    ["/usr/lib/chromium/chromium", "/usr/bin/chromium"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .unwrap_or("chromium")
}

/// Reads an error page: what it says is in a table that its scripts fill it from.
pub const REFUSAL: &str = r"
    const shown = window.loadTimeDataRaw ?? {};
    const leaf = /-----BEGIN CERTIFICATE-----([^-]*)-----END/.exec(shown.pem);
    return {error: shown.errorCode?.replace('net::', ''), leaf: leaf?.[1].replace(/\s/g, '')};";
