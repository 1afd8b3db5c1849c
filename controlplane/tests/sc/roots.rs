//! What sites are judged by: `--cacert-file`, `--insecure-domains` and the system's roots.

use super::*;

/// Runs until "up" and ends; the log.
fn log_of_a_run(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let stub = Stub::start();
    let base = ["-u", "U", "-k", KEY, "-x", &stub.url];
    let mut sc = Sc::start_with(folder(), &[&base, arguments].concat(), variables);
    sc.line(UP);
    let log = fs::read_to_string(sc.path("sc.log")).expect("log");
    sc.signal("-TERM");
    assert_eq!(sc.end().0, 0);
    log
}

#[test]
fn bad_files_of_roots_are_2_before_anything_is_asked_for() {
    let stub = Stub::start();
    let place = folder();
    let path = |name: &str| place.path().join(name).display().to_string();
    let (good, empty, der) = (path("good.pem"), path("empty.pem"), path("root.der"));
    let root = rcgen::generate_simple_self_signed(["root.test".to_owned()]).expect("certificate");
    fs::write(&good, root.cert.pem()).expect("file");
    fs::write(&empty, "").expect("file");
    fs::write(&der, root.cert.der()).expect("file");
    let unfit = "no certificate in it; a file of certificates in PEM is needed";
    for (file, why) in [
        ("/nonexistent/root.pem", "No such file or directory"),
        (&empty, unfit),
        (&der, unfit),
        (&place.path().display().to_string(), "Is a directory"),
    ] {
        for files in [
            vec!["--cacert-file", file],
            vec!["--cacert-file", &good, "--cacert-file", file],
        ] {
            let (code, line) = last_line(&[&["-u", "U", "-k", KEY, "-x", &stub.url], &files[..]].concat());
            assert_eq!(code, 2, "{line}");
            let start = format!("Error: --cacert-file: {file}: {why}");
            assert!(line.starts_with(&start) && line.contains("PEM"), "{line}");
        }
    }
    let domains = "a.test,https://b.test";
    let (code, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url, "--insecure-domains", domains]);
    assert_eq!(code, 2);
    assert!(
        line.starts_with("Error: --insecure-domains: \"https://b.test\" is no domain"),
        "{line}"
    );
    assert_eq!(stub.api().count("POST"), 0);
}

#[test]
fn roots_of_sites_are_not_those_of_rest() {
    let stub = Stub::start_tls();
    let place = folder();
    let ca = place.path().join("ca.pem");
    fs::write(&ca, &stub.ca).expect("ca");
    let ca = ca.to_str().expect("path");
    let (code, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url, "--cacert-file", ca]);
    assert_eq!(code, 3);
    assert!(line.contains("UnknownIssuer"), "{line}");
    let mut sc = Sc::with(&stub, &["--cainfo", ca, "--cacert-file", ca]);
    sc.line(UP);
    sc.signal("-TERM");
    assert_eq!(sc.end().0, 0);
}

#[test]
fn what_is_not_checked_is_named_in_the_log() {
    let warning = "not checked (--insecure-domains): ";
    let log = log_of_a_run(&["--insecure-domains", "old.test, *.lab.test"], &[]);
    let line = log.lines().find(|line| line.contains(warning)).expect("a warning");
    assert!(
        line.contains("WARN") && line.ends_with("old.test, *.lab.test"),
        "{line}"
    );
    let log = log_of_a_run(&[], &[("SAUCE_INSECURE_DOMAINS", "all")]);
    assert!(log.contains(&format!("{warning}all")), "{log}");
    assert!(!log_of_a_run(&[], &[]).contains("--insecure-domains"));
}

#[test]
fn a_system_without_roots_is_a_warning() {
    let without = "this system has no root certificates";
    let log = log_of_a_run(&[], &[("SSL_CERT_FILE", "/dev/null")]);
    assert!(log.contains(without), "{log}");
    let place = folder();
    let own = place.path().join("own.pem");
    let root = rcgen::generate_simple_self_signed(["root.test".to_owned()]).expect("certificate");
    fs::write(&own, root.cert.pem()).expect("file");
    let log = log_of_a_run(&[], &[("SSL_CERT_FILE", own.to_str().expect("path"))]);
    assert!(!log.contains(without), "{log}");
}
