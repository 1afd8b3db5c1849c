//! The tests of HTTP caches that others wrote (<https://cache-tests.fyi>), through the tunnel's proxy: their site and
//! their client run in Node, between them are `sc-cloud` and `sc`.
//!
//! `scripts/test` puts the package into the target folder. `CULVERT_CACHE_TESTS=FOLDER` takes a checkout of the repository
//! instead, with its dependencies installed.

mod misses;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use misses::{CHECKOUT, Edition, PUBLISHED};
use serde_json::Value;
use tests::both_drivers;
use tests::cloud::{Cloud, Driver};
use tests::process::Process;

both_drivers![the_cache_does_what_is_asked_of_caches];

/// They take 10 s, nearly all of it waiting for what they stored to become stale.
const LIMIT: Duration = Duration::from_secs(45);

fn edition() -> (PathBuf, Edition) {
    if let Some(folder) = std::env::var_os("CULVERT_CACHE_TESTS") {
        return (folder.into(), CHECKOUT);
    }
    let own = std::env::current_exe().expect("a path of this test");
    let target = own.ancestors().nth(3).expect("TARGET/PROFILE/deps/TEST");
    (target.join("http-cache-tests-0.4.5"), PUBLISHED)
}

fn the_cache_does_what_is_asked_of_caches(driver: Driver) {
    let (folder, edition) = edition();
    assert!(
        folder.is_dir(),
        "{} is not there: scripts/test installs it",
        folder.display()
    );
    let cloud = Cloud::start(driver);
    let tunnel = cloud.start_bumping_tunnel(&["--shards", "1"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http_cache/run.mjs");
    let mut command = Command::new("node");
    command.arg(script).arg(folder).arg(format!("http://{}", tunnel.proxy));
    let mut node = Process::start(&mut command);
    assert_eq!(node.exit_code(LIMIT), 0, "{}", node.stderr());
    let outcomes: BTreeMap<String, Value> = serde_json::from_str(&node.stdout()).expect("outcomes in JSON");

    let mut faults = Vec::new();
    for (name, total, least) in edition.kinds {
        let of_kind = || outcomes.values().filter(|outcome| outcome["kind"] == name);
        let (there, passed) = (
            of_kind().count(),
            of_kind().filter(|outcome| outcome["passed"] == true).count(),
        );
        println!("{name}: {passed} of {there} passed");
        if there != total || passed < least {
            faults.push(format!("{name}: {passed} of {there} passed, not {least} of {total}"));
        }
    }
    let misses = edition.misses.into_iter().flatten();
    let mut listed: BTreeMap<&str, &str> = misses
        .flat_map(|miss| miss.tests.iter().map(|test| (*test, miss.why)))
        .collect();
    for (test, outcome) in &outcomes {
        match (outcome["passed"] == true, listed.remove(test.as_str())) {
            (false, None) => faults.push(format!("{test} fails: {}", outcome["why"])),
            (true, Some(why)) => faults.push(format!("{test} passes, though listed: {why}")),
            _ => {}
        }
    }
    faults.extend(listed.keys().map(|test| format!("{test} is listed, but no test")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    tunnel.stop();
}
