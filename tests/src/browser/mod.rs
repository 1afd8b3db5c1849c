//! Headless browsers, driven over WebDriver, each with a HOME of its own in which it trusts the roots given. No check of
//! certificates is off.

mod chromium;
mod firefox;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::Client;
use crate::process::Process;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Chromium,
    Firefox,
}

pub struct Browser {
    kind: Kind,
    driver: Process,
    address: SocketAddr,
    session: String,
    home: TempDir,
}

/// What a browser shows in place of a page.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The browser's own name of it.
    pub error: String,
    /// The leaf that it holds something against, as DER.
    pub leaf: Option<Vec<u8>>,
}

impl Browser {
    /// Starts a session whose only way out is the proxy, loopback names included.
    pub fn start(kind: Kind, proxy: SocketAddr, trusted_pems: &[&str]) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let mut command = match kind {
            Kind::Chromium => chromium::driver(home.path(), trusted_pems),
            Kind::Firefox => firefox::driver(home.path(), trusted_pems),
        };
        command.env("HOME", home.path()).env("TMPDIR", home.path());
        for name in [
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
        ] {
            command.env_remove(name);
        }
        let driver = Process::start(&mut command);
        let port = driver.line("its port", |line| match kind {
            Kind::Chromium => chromium::port(line),
            Kind::Firefox => firefox::port(line),
        });
        let mut browser = Self {
            kind,
            driver,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            session: String::new(),
            home,
        };
        let capabilities = match kind {
            Kind::Chromium => chromium::capabilities(proxy),
            Kind::Firefox => firefox::capabilities(proxy, browser.home.path()),
        };
        let value = browser.call("/session", json!({ "capabilities": { "alwaysMatch": capabilities } }));
        browser.session = value["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    /// Posts a command; the driver's account of it if it failed.
    fn try_call(&self, path: &str, body: &Value) -> Result<Value, Value> {
        let client = Client::dial(self.address).expect("the driver listens");
        let fields = [("Content-Type", "application/json"), ("Connection", "close")];
        // geckodriver listens to nobody who names another.
        let answer = client
            .of_host(&self.address.to_string())
            .request("POST", path, &fields, body.to_string().as_bytes())
            .expect("an answer of the driver");
        let value = answer.json()["value"].clone();
        if answer.status() == 200 { Ok(value) } else { Err(value) }
    }

    fn call(&self, path: &str, body: Value) -> Value {
        self.try_call(path, &body)
            .unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.driver.stderr()))
    }

    fn of_session(&self, path: &str) -> String {
        format!("/session/{}/{path}", self.session)
    }

    pub fn open(&self, url: &str) {
        self.call(&self.of_session("url"), json!({ "url": url }));
    }

    /// Opens what must not load; all empty if it does. Chromium looks for captive portals first, up to 3 s.
    pub fn refusal(&self, url: &str) -> Refusal {
        // What is read below is never of the page before.
        self.open("about:blank");
        // Whether that is an error is a matter of the driver's taste.
        let _ = self.try_call(&self.of_session("url"), &json!({ "url": url }));
        let script = match self.kind {
            Kind::Chromium => chromium::REFUSAL,
            Kind::Firefox => firefox::REFUSAL,
        };
        let shown = self.call(
            &self.of_session("execute/sync"),
            json!({ "script": script, "args": [] }),
        );
        let leaf = shown["leaf"].as_str();
        Refusal {
            error: shown["error"].as_str().unwrap_or_default().to_owned(),
            leaf: leaf.map(|text| BASE64_STANDARD.decode(text).expect("base64")),
        }
    }

    /// Makes a tab, and goes to it.
    pub fn new_tab(&self) {
        let tab = self.call(&self.of_session("window/new"), json!({ "type": "tab" }));
        self.call(&self.of_session("window"), json!({ "handle": tab["handle"] }));
    }

    /// Runs a script that calls its last argument with a value once it has one.
    pub fn wait_for(&self, script: &str) -> Value {
        self.call(
            &self.of_session("execute/async"),
            json!({ "script": script, "args": [] }),
        )
    }

    /// The title once it is another than `loading`.
    pub fn final_title(&self) -> String {
        let script = "const done = arguments[arguments.length - 1];\
            const look = () => document.title !== 'loading' && done(document.title);\
            new MutationObserver(look).observe(document.documentElement, {subtree: true, childList: true}); look();";
        self.wait_for(script).as_str().unwrap_or_default().to_owned()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Killing the driver alone would leave the browser; a driver that is gone already has ended it.
        if let Ok(client) = Client::dial(self.address) {
            let path = format!("/session/{}", self.session);
            let mut client = client.of_host(&self.address.to_string());
            let _ = client.request("DELETE", &path, &[("Connection", "close")], &[]);
        }
    }
}

/// Puts roots into a new NSS database in this folder.
fn trust(folder: &Path, pems: &[&str]) {
    fs::create_dir_all(folder).expect("a folder");
    let database = format!("sql:{}", folder.display());
    certutil(&["-d", &database, "-N", "--empty-password"]);
    for (i, pem) in pems.iter().enumerate() {
        let file = folder.join("root.pem");
        fs::write(&file, pem).expect("a file");
        let (name, file) = (format!("root {i}"), file.to_string_lossy());
        certutil(&["-d", &database, "-A", "-t", "C,,", "-n", &name, "-i", &file]);
    }
}

fn certutil(arguments: &[&str]) {
    let output = Command::new("certutil")
        .args(arguments)
        .output()
        .expect("certutil runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "certutil: {stderr}");
}
