//! Each option from each source, and the order between them.

use super::file::scalar;
use super::*;
use std::ffi::OsString;

const BASE: &str = "-u U -k planted -x https://cloud.example:8443/rest/v1";

struct Case {
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Case {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("temporary folder"),
            variables: Vec::new(),
        }
    }

    fn var(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// The user's own file, found through XDG_CONFIG_HOME.
    fn own_file(self, text: &str) -> Self {
        let folder = self.folder.path().join("culvert");
        std::fs::create_dir_all(&folder).expect("folder");
        std::fs::write(folder.join("sc.yaml"), text).expect("file");
        let home = self.folder.path().display().to_string();
        self.var("XDG_CONFIG_HOME", &home)
    }

    fn named_file(&self, text: &str) -> String {
        let path = self.folder.path().join("named.yaml");
        std::fs::write(&path, text).expect("file");
        path.display().to_string()
    }

    fn run(&self, line: &str) -> Result<Config, String> {
        let words = std::iter::once("sc").chain(line.split_whitespace());
        let args = crate::cli::parse(words.map(OsString::from)).map_err(|s| format!("{s:?}"))?;
        resolve(args, &|name| {
            let found = self.variables.iter().find(|(n, _)| n == name);
            found.map(|(_, value)| value.clone())
        })
    }

    fn good(&self, line: &str) -> Config {
        self.run(line).unwrap_or_else(|e| panic!("{line}: {e}"))
    }
}

#[test]
fn defaults() {
    let config = Case::new().good(BASE);
    assert_eq!((config.user.as_str(), config.key.expose()), ("U", "planted"));
    assert_eq!(config.rest_url.as_str(), "https://cloud.example:8443/rest/v1");
    assert_eq!((config.identifier, config.tunnel_pool), (None, false));
    assert_eq!(config.logfile, Place::Temporary("/tmp/sc.log".into()));
    assert_eq!(config.pidfile, Place::Temporary("/tmp/sc_client.pid".into()));
    assert_eq!((config.readyfile, config.cainfo), (None, None));
    assert_eq!((config.verbose, config.links), (0, None));
    assert_eq!(config.shards, cores().min(4));
    assert_eq!(config.max_streams, 8_192);
    assert!(matches!(config.driver, Driver::Auto));
    assert_eq!(config.times, Times::default());
    assert_eq!((config.drain_timeout, config.lost_timeout), (DRAIN_MAX, LOST_AFTER));
    assert_eq!(config.vm_version, None);
}

#[test]
fn a_pool_is_asked_for_by_flag_variable_or_file() {
    let full = || Case::new().var("HOME", "/nonexistent");
    for flag in ["--tunnel-pool", "--no-remove-colliding-tunnels"] {
        assert!(full().good(&format!("{BASE} -i x {flag}")).tunnel_pool, "{flag}");
    }
    for (value, pool) in [("true", true), ("on", true), ("no", false), ("false", false)] {
        for variable in ["SAUCE_TUNNEL_POOL", "SAUCE_NO_REMOVE_COLLIDING_TUNNELS"] {
            assert_eq!(
                full().var(variable, value).good(BASE).tunnel_pool,
                pool,
                "{variable}={value}"
            );
        }
        let file = full().own_file(&format!("tunnel-pool: {value}\n"));
        assert_eq!(file.good(BASE).tunnel_pool, pool, "tunnel-pool: {value}");
    }
    let error = full().var("SAUCE_TUNNEL_POOL", "2").run(BASE).unwrap_err();
    assert!(
        error.contains("--tunnel-pool") && error.contains("neither true nor false"),
        "{error}"
    );
}

#[test]
fn the_cache_is_left_out_by_flag_variable_or_file() {
    let full = || Case::new().var("HOME", "/nonexistent");
    assert!(!full().good(BASE).no_proxy_caching);
    for flag in ["-N", "--no-proxy-caching"] {
        assert!(full().good(&format!("{BASE} {flag}")).no_proxy_caching, "{flag}");
    }
    assert!(full().var("SAUCE_NO_PROXY_CACHING", "true").good(BASE).no_proxy_caching);
    let file = full().own_file("no-proxy-caching: true\n");
    assert!(file.good(BASE).no_proxy_caching);
}

#[test]
fn the_command_line_goes_before_the_environment_and_that_before_files() {
    type Reads = fn(&Config) -> String;
    let rows: &[(&str, &[&str], [&str; 4], Reads)] = &[
        ("user", &["USERNAME", "USER"], ["a", "b", "c", "d"], |c| c.user.clone()),
        ("api-key", &["ACCESS_KEY", "API_KEY"], ["a", "b", "c", "d"], |c| {
            c.key.expose().into()
        }),
        (
            "rest-url",
            &["REST_URL"],
            ["https://a/r", "https://b/r", "https://c/r", "https://d/r"],
            |c| c.rest_url.to_string(),
        ),
        (
            "tunnel-identifier",
            &["TUNNEL_IDENTIFIER", "TUNNEL_NAME"],
            ["a", "b", "c", "d"],
            |c| c.identifier.clone().unwrap_or_default(),
        ),
        ("logfile", &["LOGFILE", "LOG_FILE"], ["a", "b", "c", "d"], |c| {
            c.logfile.path().display().to_string()
        }),
        ("pidfile", &["PIDFILE"], ["a", "b", "c", "d"], |c| {
            c.pidfile.path().display().to_string()
        }),
        ("readyfile", &["READYFILE"], ["a", "b", "c", "d"], |c| {
            c.readyfile.as_ref().map_or(String::new(), |p| p.display().to_string())
        }),
        ("cainfo", &["CAINFO"], ["a", "b", "c", "d"], |c| {
            c.cainfo.as_ref().map_or(String::new(), |p| p.display().to_string())
        }),
        ("cacert-file", &["CACERT_FILE"], ["a", "b", "c", "d"], |c| {
            let files = c.cacert_files.iter().map(|p| p.display().to_string());
            files.collect::<Vec<_>>().join("+")
        }),
        (
            "auth",
            &["AUTH"],
            ["a.test:1:u:p", "b.test:2:u:p", "c.test:3:u:p", "d.test:4:u:p"],
            |c| c.auth.sites.join("+") + ":u:p",
        ),
        (
            "insecure-domains",
            &["INSECURE_DOMAINS"],
            ["a.test", "b.test", "c.test", "d.test"],
            |c| c.insecure_domains.join("+"),
        ),
        ("shards", &["SHARDS"], ["1", "2", "3", "5"], |c| c.shards.to_string()),
        (
            "tunnel-connections",
            &["TUNNEL_CONNECTIONS"],
            ["1", "2", "3", "5"],
            |c| c.links.unwrap_or(0).to_string(),
        ),
        ("max-streams", &["MAX_STREAMS"], ["1", "2", "3", "5"], |c| {
            c.max_streams.to_string()
        }),
        ("memory-max", &["MEMORY_MAX"], ["1000", "2000", "3000", "5000"], |c| {
            (c.memory_bytes >> 20).to_string()
        }),
        (
            "http-dial-timeout",
            &["HTTP_DIAL_TIMEOUT"],
            ["1s", "2s", "3s", "4s"],
            |c| duration::show(c.times.dial),
        ),
        (
            "first-byte-timeout",
            &["FIRST_BYTE_TIMEOUT"],
            ["1s", "2s", "3s", "4s"],
            |c| duration::show(c.times.first_byte),
        ),
        ("idle-timeout", &["IDLE_TIMEOUT"], ["1s", "2s", "3s", "24h"], |c| {
            duration::show(c.times.idle)
        }),
        ("resume-window", &["RESUME_WINDOW"], ["1s", "2s", "3s", "4s"], |c| {
            duration::show(c.times.resume_window)
        }),
        ("drain-timeout", &["DRAIN_TIMEOUT"], ["1s", "2s", "3s", "4s"], |c| {
            duration::show(c.drain_timeout)
        }),
        ("lost-timeout", &["LOST_TIMEOUT"], ["1s", "2s", "3s", "4s"], |c| {
            duration::show(c.lost_timeout)
        }),
        ("vm-version", &["VM_VERSION"], ["a", "b", "c", "d"], |c| {
            c.vm_version.clone().unwrap_or_default()
        }),
    ];
    for (option, variables, [argv, env, named, own], read) in rows {
        let base = "--shards 1"; // something harmless, so that the line is never empty
        let full = |c: Case| c.var("SAUCE_CONFIG_FILE", "").var("HOME", "/nonexistent");
        let rest = |skip: &str| {
            [("user", "U"), ("api-key", "K"), ("rest-url", "https://h/r")]
                .iter()
                .filter(|(name, _)| *name != skip)
                .map(|(name, value)| format!("--{name} {value} "))
                .collect::<String>()
        };
        let line = rest(option);
        let base = if *option == "shards" { "" } else { base };
        for variable in *variables {
            let case = full(Case::new())
                .var(&format!("SAUCE_{variable}"), env)
                .own_file(&format!("{option}: {own}\n"));
            let file = case.named_file(&format!("{option}: {named}\n"));
            let config = case.good(&format!("{line}{base} -c {file} --{option} {argv}"));
            assert_eq!(read(&config), *argv, "{option}");
            let config = case.good(&format!("{line}{base} -c {file}"));
            assert_eq!(read(&config), *env, "{option} by SAUCE_{variable}");
        }
        let case = full(Case::new()).own_file(&format!("{option}: {own}\n"));
        let file = case.named_file(&format!("{option}: \"{named}\" # why\n"));
        let config = case.good(&format!("{line}{base} --config-file {file}"));
        assert_eq!(read(&config), *named, "{option} by file");
        assert_eq!(read(&case.good(&format!("{line}{base}"))), *own, "{option} by own file");
    }
}

#[test]
fn verbosity_and_driver() {
    let case = Case::new().var("SAUCE_VERBOSE", "true").var("SAUCE_DRIVER", "epoll");
    assert_eq!(case.good(BASE).verbose, 1);
    assert_eq!(case.good(&format!("{BASE} -vv")).verbose, 2);
    assert!(matches!(case.good(BASE).driver, Driver::Epoll));
    let line = format!("{BASE} --driver io_uring");
    assert!(matches!(case.good(&line).driver, Driver::IoUring));
    let text = case.run(&format!("{BASE} --driver kqueue")).unwrap_err();
    assert_eq!(text, "--driver: \"kqueue\" is neither auto, io_uring nor epoll");
}

#[test]
fn what_is_missing_is_named() {
    let case = Case::new();
    assert!(case.run("-k K").unwrap_err().contains("-u or SAUCE_USERNAME"));
    assert!(case.run("-u U").unwrap_err().contains("-k or SAUCE_ACCESS_KEY"));
    let text = case.run("-u U -k planted").unwrap_err();
    for way in [
        "-x",
        "SAUCE_REST_URL",
        "--config-file",
        "$XDG_CONFIG_HOME/culvert/sc.yaml",
        "/etc/culvert/sc.yaml",
    ] {
        assert!(text.contains(way), "{way} in {text}");
    }
    assert!(!text.contains("planted") && !text.contains('\n'));
}

#[test]
fn a_users_file_alone_is_enough() {
    let case = Case::new().own_file("---\n# our cloud\nrest-url: 'https://h:8443/rest/v1'\n\nverbose: 2\n");
    let config = case.good("-u U -k K");
    assert_eq!(config.rest_url.as_str(), "https://h:8443/rest/v1");
    assert_eq!(config.verbose, 2);
}

#[test]
fn rest_urls() {
    for (text, url) in [
        ("https://h:8443", "https://h:8443/rest/v1"),
        ("https://h/", "https://h/rest/v1"),
        ("https://h/rest/v1/", "https://h/rest/v1"),
        ("http://127.0.0.1:80/rest/v1", "http://127.0.0.1/rest/v1"),
        ("http://[::1]:8080/rest/v1", "http://[::1]:8080/rest/v1"),
        ("http://localhost:1/r", "http://localhost:1/r"),
    ] {
        assert_eq!(rest_url(text).map(|u| u.to_string()), Ok(url.into()));
    }
    for (text, why) in [
        ("cloud", "not a URL"),
        ("ftp://h/", "only https://"),
        ("http://h/rest/v1", "in clear"),
        ("http://10.0.0.1/rest/v1", "in clear"),
        ("http://localhost.example/rest/v1", "in clear"),
        ("https://u:planted@h/", "credentials belong to -u and -k"),
        ("https://h/?a", "neither ? nor #"),
    ] {
        let error = rest_url(text).unwrap_err();
        assert!(error.contains(why) && !error.contains("planted"), "{error}");
    }
}

#[test]
fn identifiers_name_the_files_but_never_a_folder() {
    let config = Case::new().good(&format!("{BASE} -i ../a/b*c"));
    assert_eq!(config.identifier.as_deref(), Some("../a/b*c"));
    assert_eq!(config.logfile, Place::Temporary("/tmp/sc-.._a_b_c.log".into()));
    assert_eq!(config.pidfile, Place::Temporary("/tmp/sc_client-.._a_b_c.pid".into()));
    let case = Case::new()
        .var("TMPDIR", "/var/tmp")
        .var("SAUCE_TUNNEL_IDENTIFIER", "x\ny");
    assert!(case.run(BASE).unwrap_err().contains("control characters"));
    let case = Case::new().var("TMPDIR", "/var/tmp");
    assert_eq!(case.good(BASE).logfile.path(), Path::new("/var/tmp/sc.log"));
    assert!(case.run(&format!("{BASE} -i {}", "x".repeat(201))).is_err());
}

#[test]
fn later_options_are_refused_wherever_they_are_given() {
    for line in [
        "-p h:1",
        "-w u:planted",
        "--pac u",
        "-T",
        "-s",
        "-z 5",
        "--max-logsize 5",
        "--doctor",
    ] {
        let error = Case::new().run(&format!("{BASE} {line}")).unwrap_err();
        assert!(
            error.starts_with("--") && error.ends_with(" is not built yet"),
            "{error}"
        );
        assert!(!error.contains("planted"));
    }
    let case = Case::new().var("SAUCE_PAC", "a");
    assert_eq!(case.run(BASE).unwrap_err(), "--pac is not built yet");
    let case = Case::new().own_file("shared-tunnel: true\n");
    assert_eq!(case.run(BASE).unwrap_err(), "--shared-tunnel is not built yet");
    for line in ["-P 4445", "--se-port 4446", "--scproxy-port 29999"] {
        let error = Case::new().run(&format!("{BASE} {line}")).unwrap_err();
        assert!(error.ends_with("other than 0 is not built yet"), "{error}");
    }
    Case::new().good(&format!("{BASE} --se-port 0 --scproxy-port 0 --vm-version next"));
}

#[test]
fn numbers_have_bounds() {
    for line in [
        "--shards 0",
        "--shards 65",
        "--shards x",
        "--tunnel-connections 0",
        "--max-streams -1",
        "--memory-max 0",
    ] {
        let line = line.replace(" -1", "=-1");
        let error = Case::new().run(&format!("{BASE} {line}")).unwrap_err();
        assert!(error.contains("is no number from 1 to"), "{error}");
    }
}

#[test]
fn memory_that_the_other_options_exceed_is_named_with_what_they_need() {
    let line = format!("{BASE} --shards 2 --tunnel-connections 2 --max-streams 100 --memory-max");
    assert_eq!(
        Case::new().run(&format!("{line} 20")).unwrap_err(),
        "--memory-max: 2 shards (--shards), 2 links (--tunnel-connections) and 100 streams (--max-streams) need at least \
         130 MiB"
    );
    assert_eq!(Case::new().good(&format!("{line} 130")).memory_bytes, 130 << 20);
    let plain = format!("{BASE} --shards 2 --tunnel-connections 2 --max-streams 100");
    assert_eq!(
        Case::new().good(&plain).memory_bytes,
        dataplane::limits::client_memory_bytes(100, 2, 2)
    );
}

#[test]
fn time_limits_have_units_and_bounds() {
    for (line, text) in [
        (
            "--idle-timeout 25h",
            "--idle-timeout: \"25h\" is no time from 100ms to 24h; write 30s, 500ms, 5m or 1h",
        ),
        (
            "--resume-window 46",
            "--resume-window: \"46\" is no time from 100ms to 45s; write 30s, 500ms, 5m or 1h",
        ),
        (
            "--drain-timeout soon",
            "--drain-timeout: \"soon\" is no time from 100ms to 5m; write 30s, 500ms, 5m or 1h",
        ),
    ] {
        assert_eq!(Case::new().run(&format!("{BASE} {line}")).unwrap_err(), text);
    }
}

#[test]
fn bad_files_are_named_with_the_line_and_without_the_value() {
    for (text, why) in [
        ("api-key planted", "line 1: not `name: value`"),
        ("api-key:planted", "line 1: not `name: value`"),
        ("user: a\n  planted: b", "line 2: this name is no option"),
        ("user: a\nuser: planted", "line 2: this name stands twice"),
        ("api-key: 'planted", "line 1: the value is not"),
        ("api-key: [planted]", "line 1: the value is not"),
        ("auth:\n- 'planted", "line 2: the value is not"),
        ("api-key:\n- planted", "line 2: a list stands below the `name:`"),
        ("auth: a\n- planted", "line 2: a list stands below the `name:`"),
        ("- planted", "line 1: a list stands below the `name:`"),
        ("auth:\n-planted", "line 2: not `name: value`"),
    ] {
        let case = Case::new();
        let file = case.named_file(text);
        let error = case.run(&format!("{BASE} -c {file}")).unwrap_err();
        assert!(error.starts_with(&file) && error.contains(why), "{error}");
        assert!(!error.contains("planted"), "{error}");
    }
    let error = Case::new().run(&format!("{BASE} -c /nonexistent/f")).unwrap_err();
    assert_eq!(error, "--config-file: /nonexistent/f does not exist");
}

#[test]
fn scalars() {
    for (text, value) in [
        ("a b", Some("a b")),
        ("a#b # c", Some("a#b")),
        ("# c", Some("")),
        ("'a # b' # c", Some("a # b")),
        ("\"a\"", Some("a")),
        ("'a' b", None),
        ("{a: b}", None),
        ("", Some("")),
    ] {
        assert_eq!(scalar(text).as_deref(), value, "{text}");
    }
}

#[test]
fn a_config_does_not_show_its_key() {
    let config = Case::new().good(BASE);
    assert!(!format!("{config:?}").contains("planted"));
}

#[test]
fn passwords_are_given_once_a_site_wherever_they_stand() {
    let shown = |config: Config| {
        let auth = config.auth;
        let line = |host: &str, port| {
            auth.credentials
                .of(host, port)
                .map(|line| String::from_utf8_lossy(line).into_owned())
        };
        (auth.sites.join(" "), line("a.test", 80), line("::1", 81))
    };
    // u:p,'w # and u:"
    let wanted = (
        "[::1]:81 a.test:80".to_owned(),
        Some("Authorization: Basic dTpwLCd3ICM=\r\n".to_owned()),
        Some("Authorization: Basic dToi\r\n".to_owned()),
    );
    let typed = ["-a", "a.test:80:u:p,'w #", "--auth=[::1]:81:u:\""];
    let args = crate::cli::parse(
        std::iter::once("sc")
            .chain(BASE.split(' '))
            .chain(typed)
            .map(OsString::from),
    );
    let case = Case::new().var("SAUCE_AUTH", "b.test:80:u:p");
    let env = |name: &str| case.variables.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    assert_eq!(shown(resolve(args.unwrap_or_else(|_| panic!()), &env).unwrap()), wanted);
    let case = Case::new().var("SAUCE_AUTH", "a.test:80:u:p,'w #\n\n[::1]:81:u:\"\n");
    assert_eq!(shown(case.good(BASE)), wanted);
    let case = Case::new().own_file("auth: # two\n  - \"a.test:80:u:p,'w #\"\n# and\n- '[::1]:81:u:\"'\nshards: 1\n");
    assert_eq!(shown(case.good(BASE)), wanted);
    for (case, line) in [
        (Case::new(), "-a fine:80:u:p -a a.test:planted"),
        (Case::new().var("SAUCE_AUTH", "fine:80:u:p\na.test:planted"), ""),
        (Case::new().own_file("auth:\n- fine:80:u:p\n- a.test:planted\n"), ""),
    ] {
        let error = case.run(&format!("{BASE} {line}")).unwrap_err();
        assert!(
            error.starts_with("--auth: entry 2 does not begin with a host"),
            "{error}"
        );
        assert!(
            error.contains("write host:port:user:password") && !error.contains("planted"),
            "{error}"
        );
    }
}

#[test]
fn lists_of_a_file_are_comma_lists_too() {
    let case = Case::new().own_file("direct-domains:\n  - a.test\n  - b.test, c.test\ncacert-file:\n-\n- 'd e.pem'\n");
    let config = case.good(BASE);
    assert_eq!(config.direct_domains, ["a.test", "b.test", "c.test"]);
    assert_eq!(config.cacert_files, [PathBuf::from("d e.pem")]);
}

#[test]
fn fast_fail_expressions_come_from_everywhere_and_must_compile() {
    let case = Case::new().var("SAUCE_FAST_FAIL_REGEXPS", r"a\.b,,^c");
    assert_eq!(case.good(BASE).fast_fail_regexps, [r"a\.b", "^c"]);
    assert_eq!(case.good(&format!("{BASE} -F x")).fast_fail_regexps, ["x"]);
    let none: [&str; 0] = [];
    assert_eq!(Case::new().good(BASE).fast_fail_regexps, none);
    let error = Case::new().run(&format!("{BASE} -F fine,a{{1,2}}")).unwrap_err();
    assert!(
        error.starts_with("--fast-fail-regexps: \"a{1\" is no regular expression"),
        "{error}"
    );
}

#[test]
fn domains_come_from_everywhere_and_must_be_some() {
    let case = Case::new()
        .var("SAUCE_DIRECT_DOMAINS", "a.test, *.b.test,")
        .own_file("tunnel-domains: c.test\n");
    let config = case.good(&format!("{BASE} -B all --insecure-domains old.test,ALL"));
    assert_eq!(config.direct_domains, ["a.test", "*.b.test"]);
    assert_eq!(config.tunnel_domains, ["c.test"]);
    assert_eq!(config.no_ssl_bump_domains, ["all"]);
    assert_eq!(config.insecure_domains, ["old.test", "ALL"]);
    for (line, named) in [
        ("-D fine.test,http://a.test", "--direct-domains: \"http://a.test\""),
        ("-t a.test:80", "--tunnel-domains: \"a.test:80\""),
        ("-B *", "--no-ssl-bump-domains: \"*\""),
        (
            "--insecure-domains a.test,https://b.test",
            "--insecure-domains: \"https://b.test\"",
        ),
    ] {
        let error = Case::new().run(&format!("{BASE} {line}")).unwrap_err();
        assert!(error.starts_with(named), "{error}");
    }
}

#[test]
fn several_files_of_roots_are_repeated_or_listed() {
    let files = |config: Config| config.cacert_files;
    let line = format!("{BASE} --cacert-file a.pem --cacert-file b/c.pem,d");
    let wanted = ["a.pem", "b/c.pem", "d"].map(PathBuf::from);
    assert_eq!(files(Case::new().good(&line)), wanted);
    let case = Case::new().var("SAUCE_CACERT_FILE", "a.pem, b/c.pem,,d");
    assert_eq!(files(case.good(BASE)), wanted);
    assert!(files(Case::new().good(BASE)).is_empty());
}
