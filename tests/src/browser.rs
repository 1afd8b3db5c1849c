//! Headless Chromium, driven by chromedriver over WebDriver, with a HOME of its own in which it trusts one root.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use rustix::process::geteuid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::Client;
use crate::process::Process;

pub struct Browser {
    driver: Process,
    address: SocketAddr,
    session: String,
    _home: TempDir,
}

impl Browser {
    /// Starts a session whose only way out is the proxy, loopback names included.
    pub fn start(proxy: SocketAddr, trusted_pem: &str) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        trust(home.path(), trusted_pem);
        let mut command = Command::new("chromedriver");
        command
            .arg("--port=0")
            .env("HOME", home.path())
            .env("TMPDIR", home.path());
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
        let port = driver.line("its port", |line| {
            line.strip_prefix("ChromeDriver was started successfully on port ")?
                .trim_end_matches('.')
                .parse()
                .ok()
        });
        let mut browser = Self {
            driver,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            session: String::new(),
            _home: home,
        };
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
        let capabilities = json!({
            "browserName": "chrome",
            "proxy": { "proxyType": "manual", "httpProxy": proxy, "sslProxy": proxy, "noProxy": ["<-loopback>"] },
            "goog:chromeOptions": { "args": arguments, "binary": chromium() },
        });
        let value = browser.call(
            "POST",
            "/session",
            json!({ "capabilities": { "alwaysMatch": capabilities } }),
        );
        browser.session = value["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    fn call(&self, method: &str, path: &str, body: Value) -> Value {
        let mut client = Client::dial(self.address).expect("chromedriver listens");
        let body = if method == "POST" {
            body.to_string()
        } else {
            String::new()
        };
        let fields = [("Content-Type", "application/json"), ("Connection", "close")];
        let answer = client
            .request(method, path, &fields, body.as_bytes())
            .expect("an answer of chromedriver");
        let value = answer.json()["value"].clone();
        assert_eq!(
            answer.status(),
            200,
            "{method} {path}: {value}\n{}",
            self.driver.stderr()
        );
        value
    }

    pub fn open(&self, url: &str) {
        self.call("POST", &format!("/session/{}/url", self.session), json!({ "url": url }));
    }

    /// Runs a script that calls its last argument with a value once it has one.
    pub fn wait_for(&self, script: &str) -> Value {
        let path = format!("/session/{}/execute/async", self.session);
        self.call("POST", &path, json!({ "script": script, "args": [] }))
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
        if let Ok(mut client) = Client::dial(self.address) {
            let _ = client.request(
                "DELETE",
                &format!("/session/{}", self.session),
                &[("Connection", "close")],
                &[],
            );
        }
    }
}

/// Chromium's binary: Debian's `/usr/bin/chromium` is a script around it.
fn chromium() -> &'static str {
    ["/usr/lib/chromium/chromium", "/usr/bin/chromium"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .unwrap_or("chromium")
}

/// Puts a root into the NSS database of a HOME, which Chromium reads.
fn trust(home: &Path, pem: &str) {
    let database = home.join(".pki/nssdb");
    fs::create_dir_all(&database).expect("a folder");
    let file = home.join("root.pem");
    fs::write(&file, pem).expect("a file");
    let database = format!("sql:{}", database.display());
    let file = file.to_string_lossy().into_owned();
    for arguments in [
        &["-d", &database, "-N", "--empty-password"][..],
        &["-d", &database, "-A", "-t", "C,,", "-n", "site", "-i", &file],
    ] {
        let output = Command::new("certutil")
            .args(arguments)
            .output()
            .expect("certutil runs");
        assert!(
            output.status.success(),
            "certutil: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
