//! `--auth`: user and password for sites, as they are typed.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use dataplane::credentials::Credentials;
use dataplane::http::Authority;
use dataplane::limits::{CREDENTIALS_BYTES_MAX, CREDENTIALS_MAX};
use zeroize::Zeroizing;

const FORM: &str = "write host:port:user:password, an IPv6 address in brackets";

/// Sites that are shown a password.
#[derive(Debug, Default)]
pub struct Auth {
    /// Which ones, as the cloud is told: `host:port` in lower case, sorted, so that those of a pool are alike.
    pub sites: Vec<String>,
    /// What they are shown.
    pub credentials: Arc<Credentials>,
}

/// Takes entries `host:port:user:pwd`; an IPv6 address has brackets, a password may hold colons. Empty entries are left
/// out.
///
/// # Errors
/// One sentence that names the entry by its number, and by its site where that is one; nothing else of it, since that may
/// be the password.
pub(super) fn parse(entries: &[String]) -> Result<Auth, String> {
    let entries: Vec<&String> = entries.iter().filter(|entry| !entry.is_empty()).collect();
    if entries.len() > CREDENTIALS_MAX {
        return Err(format!("{} entries, at most {CREDENTIALS_MAX}", entries.len()));
    }
    let mut shown = Vec::with_capacity(entries.len());
    for (at, entry) in entries.into_iter().enumerate() {
        let number = at + 1;
        let (site, user_pwd) =
            split(entry).ok_or_else(|| format!("entry {number} does not begin with a host and its port: {FORM}"))?;
        let bad = |what: &str| Err(format!("entry {number}, for {site}: {what}: {FORM}"));
        if !user_pwd.contains(':') {
            return bad("a user name and a password are needed");
        }
        // RFC 7617 section 2.
        if user_pwd.chars().any(char::is_control) {
            return bad("control characters are not allowed");
        }
        if user_pwd.len() > CREDENTIALS_BYTES_MAX {
            return bad(&format!("{} bytes, at most {CREDENTIALS_BYTES_MAX}", user_pwd.len()));
        }
        let basic = Zeroizing::new(BASE64_STANDARD.encode(user_pwd));
        shown.push((site.to_ascii_lowercase(), basic));
    }
    let credentials = Arc::new(Credentials::new(&shown)?);
    let mut sites: Vec<String> = shown.into_iter().map(|(site, _)| site).collect();
    sites.sort_unstable();
    Ok(Auth { sites, credentials })
}

/// `host:port`, and what follows it.
fn split(entry: &str) -> Option<(&str, &str)> {
    let host = match entry.starts_with('[') {
        true => entry.find(']')? + 1,
        false => entry.find(':')?,
    };
    let port = entry[host..].strip_prefix(':')?.find(':')?;
    let (site, rest) = entry.split_at(host + 1 + port);
    Authority::parse(site.as_bytes()).ok()?;
    Some((site, &rest[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(entries: &[&str]) -> Result<Auth, String> {
        parse(&entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn all_after_the_port_is_user_and_password() {
        for (entry, host, port, user_pwd) in [
            ("a.test:80:ada:pwd", "a.test", 80, "ada:pwd"),
            ("A.test:8080:ada:p:w@d, #'\"", "a.test", 8080, "ada:p:w@d, #'\""),
            ("10.0.0.1:443:ada:", "10.0.0.1", 443, "ada:"),
            ("localhost:1::token", "localhost", 1, ":token"),
            ("[2001:db8::1]:80:ä:ö", "2001:db8::1", 80, "ä:ö"),
        ] {
            let auth = auth(&[entry]).unwrap();
            let line = format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(user_pwd));
            assert_eq!(auth.credentials.of(host, port), Some(line.as_bytes()), "{entry}");
            assert_eq!(auth.credentials.of(host, port + 1), None, "{entry}");
        }
        assert!(auth(&["", ""]).unwrap().sites.is_empty());
    }

    #[test]
    fn the_cloud_is_told_the_sites_alone_and_in_one_order() {
        let one = auth(&["B.test:80:u:planted", "a.test:81:u:planted"]).unwrap();
        let other = auth(&["a.test:81:v:planted", "b.test:80:v:planted"]).unwrap();
        assert_eq!(one.sites, ["a.test:81", "b.test:80"]);
        assert_eq!(one.sites, other.sites);
        assert!(!format!("{one:?}").contains("planted"));
    }

    #[test]
    fn what_is_wrong_is_named_without_the_password() {
        let no_site = "entry 2 does not begin with a host and its port";
        let long = format!("a.test:80:planted:{}", "x".repeat(CREDENTIALS_BYTES_MAX));
        for (entry, why) in [
            ("planted", no_site),
            ("a.test:planted", no_site),
            ("a.test:80", no_site),
            ("planted:planted@a.test:80", no_site),
            ("http://a.test:80:u:planted", no_site),
            ("a.test:0:u:planted", no_site),
            ("a.test:65536:u:planted", no_site),
            ("*:80:u:planted", no_site),
            ("a.test:*:u:planted", no_site),
            ("::1:80:u:planted", no_site),
            ("[::1:80:u:planted", no_site),
            ("[::1]80:u:planted", no_site),
            ("a.test::u:planted", no_site),
            (
                "a.test:80:planted",
                "entry 2, for a.test:80: a user name and a password are needed",
            ),
            ("a.test:80:u:plan\tted", "entry 2, for a.test:80: control characters"),
            (&long, "entry 2, for a.test:80: 1032 bytes, at most 1024"),
            ("FINE.test:80:u:planted", "fine.test:80 stands twice"),
        ] {
            let error = auth(&["fine.test:80:u:p", entry]).err().unwrap();
            assert!(error.starts_with(why) && !error.contains("plan"), "{entry}: {error}");
            let remedy = if why.contains("twice") { "only one user" } else { FORM };
            assert!(error.contains(remedy), "{error}");
        }
        let many = vec!["a.test:80:u:p".to_owned(); CREDENTIALS_MAX + 1];
        assert!(parse(&many).err().unwrap().starts_with("1001 entries, at most"));
    }
}
