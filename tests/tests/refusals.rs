//! What cannot work says so: one clear line, and the documented exit code.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use tests::cloud::{Cloud, Driver, add_user, binary};
use tests::deaf::Closed;
use tests::origin::Origin;
use tests::process::{PATIENCE, Process};
use tests::relay::{Rule, Which};
use tests::seccomp::refuse_io_uring;

const UNREACHABLE: i32 = 3;
const NOT_AUTHORIZED: i32 = 4;
const LOCAL_RESOURCE: i32 = 7;
const USAGE: i32 = 2;

/// Runs to the end; exactly one line says what is wrong, and it holds all of `words`.
fn refused(command: &mut Command, code: i32, words: &[&str]) {
    let mut process = Process::start(command);
    let ended = process.exit_code(PATIENCE);
    let text = format!("{}\n{}", process.stdout(), process.stderr());
    let says = |line: &&str| {
        ["Error: ", "Not authorized", "sc-cloud: "]
            .iter()
            .any(|start| line.starts_with(start))
    };
    let lines: Vec<_> = text.lines().filter(says).collect();
    assert_eq!((ended, lines.len()), (code, 1), "{text}");
    for word in words {
        assert!(
            lines[0].to_lowercase().contains(&word.to_lowercase()),
            "{word:?} is not in {:?}",
            lines[0]
        );
    }
    assert!(
        !text.contains("panicked") && !text.contains("you may start your tests"),
        "{text}"
    );
}

struct Place {
    cloud: Cloud,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            cloud: Cloud::start(Driver::Epoll),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn sc(&self, user: &str, key: &str, url: &str) -> Command {
        let mut command = Command::new(binary("sc"));
        command
            .args(["-u", user, "-k", key, "-x", url, "--cainfo"])
            .arg(self.cloud.ca());
        command
            .arg("-l")
            .arg(self.folder.path().join("sc.log"))
            .arg("--pidfile")
            .arg(self.folder.path().join("sc.pid"));
        command
    }

    fn right(&self) -> Command {
        self.sc(&self.cloud.user, &self.cloud.key, &self.cloud.url())
    }
}

#[test]
fn a_wrong_key() {
    let place = Place::new();
    let wrong = "0".repeat(place.cloud.key.len());
    refused(
        &mut place.sc("ada", &wrong, &place.cloud.url()),
        NOT_AUTHORIZED,
        &["not authorized"],
    );
    // Another user's key is as wrong.
    let other = add_user(place.cloud.state.path(), "eve");
    refused(
        &mut place.sc("ada", &other, &place.cloud.url()),
        NOT_AUTHORIZED,
        &["not authorized"],
    );
}

#[test]
fn a_wrong_fingerprint() {
    let place = Place::new();
    // Someone else answers for the endpoint, with a key of their own.
    let impostor = Origin::start();
    place.cloud.relay.divert_links(impostor.https);
    refused(&mut place.right(), UNREACHABLE, &["key is not the one"]);
    assert_eq!(impostor.counters().requests, 0);
}

#[test]
fn a_wrong_port() {
    let place = Place::new();
    let closed = Closed::start();
    refused(
        &mut place.sc("ada", "k", &format!("https://{}/rest/v1", closed.address)),
        UNREACHABLE,
        &[&closed.address.to_string()],
    );
    // A port that answers, but no TLS.
    let origin = Origin::start();
    let url = format!("https://{}/rest/v1", origin.http);
    refused(
        &mut place.sc("ada", "k", &url),
        UNREACHABLE,
        &[&origin.http.to_string()],
    );
}

#[test]
fn a_cloud_of_another_ca() {
    let place = Place::new();
    let origin = Origin::start();
    let url = format!("https://{}/rest/v1", origin.https);
    refused(&mut place.sc("ada", "k", &url), UNREACHABLE, &["certificate"]);
}

#[test]
fn a_rest_that_is_silent() {
    let place = Place::new();
    place.cloud.relay.set(Which::All, Rule::BlackHole);
    refused(
        &mut place.right(),
        UNREACHABLE,
        &[&place.cloud.relay.address.to_string()],
    );
}

#[test]
fn links_that_lead_nowhere() {
    let place = Place::new();
    place.cloud.relay.set(Which::Links, Rule::Refuse);
    refused(
        &mut place.right(),
        UNREACHABLE,
        &[&place.cloud.relay.address.to_string()],
    );
}

#[test]
fn no_key_and_no_url() {
    let mut command = Command::new(binary("sc"));
    command
        .env_clear()
        .args(["-u", "ada", "-x", "https://127.0.0.1:1/rest/v1"]);
    refused(&mut command, USAGE, &["api-key", "SAUCE_ACCESS_KEY"]);
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("sc"));
    command
        .env_clear()
        .env("HOME", home.path())
        .args(["-u", "ada", "-k", "key"]);
    refused(&mut command, USAGE, &["-x", "SAUCE_REST_URL", "sc.yaml"]);
}

#[test]
fn files_that_cannot_be_written() {
    let place = Place::new();
    // A file where a folder would have to be: not even root can write there.
    let file = place.folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let bad = file.join("below");
    for option in ["--logfile", "--pidfile", "--readyfile"] {
        let mut command = Command::new(binary("sc"));
        command.args([
            "-u",
            &place.cloud.user,
            "-k",
            &place.cloud.key,
            "-x",
            &place.cloud.url(),
            "--cainfo",
        ]);
        command.arg(place.cloud.ca()).arg(option).arg(&bad);
        for other in ["--logfile", "--pidfile"].iter().filter(|&&other| other != option) {
            command.arg(other).arg(place.folder.path().join(other));
        }
        refused(&mut command, LOCAL_RESOURCE, &[&bad.to_string_lossy()]);
    }
}

#[test]
fn a_port_in_use() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("sc-cloud"));
    command
        .args(["serve", "--listen", &address, "--proxy-ports", "1-1", "--state-dir"])
        .arg(state.path());
    refused(&mut command, LOCAL_RESOURCE, &[&address, "in use"]);
}

#[test]
fn a_state_folder_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let state = file.join("state");
    let mut command = Command::new(binary("sc-cloud"));
    command
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--proxy-ports",
            "20000-20001",
            "--state-dir",
        ])
        .arg(&state);
    refused(&mut command, LOCAL_RESOURCE, &[&state.to_string_lossy()]);
}

#[test]
fn what_is_no_expression() {
    let mut command = Place::new().right();
    command.args(["-F", "fine,("]);
    refused(&mut command, USAGE, &["--fast-fail-regexps", "\"(\"", "comma"]);
}

#[test]
fn f20_who_wants_nothing_but_io_uring_is_told_at_the_start() {
    let words = ["--driver io_uring", "Operation not permitted", "epoll"];
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("sc-cloud"));
    command
        .args([
            "serve",
            "--driver",
            "io_uring",
            "--listen",
            "127.0.0.1:0",
            "--state-dir",
        ])
        .arg(state.path());
    refused(refuse_io_uring(&mut command), LOCAL_RESOURCE, &words);
    let mut place = Place::new();
    let mut command = place.right();
    refused(
        refuse_io_uring(command.args(["--driver", "io_uring"])),
        LOCAL_RESOURCE,
        &words,
    );
    let said = place.cloud.last_words();
    assert!(!said.contains("new tunnel"), "{said}");
}
