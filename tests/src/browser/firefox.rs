//! Firefox and geckodriver.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::trust;

pub fn driver(home: &Path, trusted_pems: &[&str]) -> Command {
    trust(&profile(home), trusted_pems);
    let mut command = Command::new("geckodriver");
    command.arg("--port=0");
    command
}

fn profile(home: &Path) -> PathBuf {
    home.join("profile")
}

pub fn port(line: &str) -> Option<u16> {
    let (_, port) = line.split_once("Listening on 127.0.0.1:")?;
    port.parse().ok()
}

pub fn capabilities(proxy: SocketAddr, home: &Path) -> Value {
    let proxy = proxy.to_string();
    json!({
        "browserName": "firefox",
        "proxy": { "proxyType": "manual", "httpProxy": proxy, "sslProxy": proxy },
        "moz:firefoxOptions": {
            "args": ["-headless", "-profile", profile(home)],
            "binary": "/usr/bin/firefox-esr",
            // Loopback names go to the proxy as well.
            "prefs": { "network.proxy.allow_hijacking_localhost": true },
        },
    })
}

/// Reads an error page: of certificates, or of anything else.
pub const REFUSAL: &str = r"
    const shown = document.getFailedCertSecurityInfo?.() ?? document.getNetErrorInfo?.();
    return {error: shown?.errorCodeString, leaf: shown?.certChainStrings?.[0]};";
