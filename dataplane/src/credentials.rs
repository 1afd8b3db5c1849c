//! `-a`: what `sc` shows to sites that want a password. The cloud is told which sites they are, never what they are shown.

use std::fmt;

use zeroize::Zeroizing;

use crate::http::Authority;
use crate::rules::Sites;

/// Sites, and the Authorization that each is shown.
#[derive(Default)]
pub struct Credentials {
    sites: Sites,
    lines: Vec<Zeroizing<Vec<u8>>>,
}

impl Credentials {
    /// Of sites (`host:port`), each with its user and password as Basic carries them: in base64 (RFC 7617 section 2).
    ///
    /// # Errors
    /// A sentence that names the site that is none, or that stands twice.
    pub fn new(shown: &[(String, Zeroizing<String>)]) -> Result<Self, String> {
        let names: Vec<String> = shown.iter().map(|(site, _)| site.clone()).collect();
        let sites = Sites::parse(&names)?;
        let stands_first = |place: usize, name: &str| {
            let site = Authority::parse(name.as_bytes()).ok();
            let first = site.and_then(|site| sites.find(site.host, site.port?));
            first == Some(place)
        };
        let mut named = names.iter().enumerate();
        if let Some((_, name)) = named.find(|(place, name)| !stands_first(*place, name)) {
            return Err(format!("{name} stands twice: only one user can be shown to it"));
        }
        let line = |basic: &str| Zeroizing::new(format!("Authorization: Basic {basic}\r\n").into_bytes());
        Ok(Self {
            sites,
            lines: shown.iter().map(|(_, basic)| line(basic)).collect(),
        })
    }

    /// The field line for exactly this site, with its CRLF; `host` without brackets.
    pub fn of(&self, host: &str, port: u16) -> Option<&[u8]> {
        let line = self.lines.get(self.sites.find(host, port)?)?;
        Some(line.as_slice())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(shown: &[(&str, &str)]) -> Result<Credentials, String> {
        let owned = |(site, basic): &(&str, &str)| ((*site).to_owned(), Zeroizing::new((*basic).to_owned()));
        Credentials::new(&shown.iter().map(owned).collect::<Vec<_>>())
    }

    #[test]
    fn each_site_is_shown_its_own() {
        let all = credentials(&[("a.test:80", "YQ=="), ("a.test:81", "Yg=="), ("[::1]:80", "Yw==")]).unwrap();
        assert_eq!(all.of("A.test.", 80), Some(&b"Authorization: Basic YQ==\r\n"[..]));
        assert_eq!(all.of("a.test", 81), Some(&b"Authorization: Basic Yg==\r\n"[..]));
        assert_eq!(all.of("0::1", 80), Some(&b"Authorization: Basic Yw==\r\n"[..]));
        for (host, port) in [("a.test", 82), ("x.a.test", 80), ("test", 80), ("b.test", 80)] {
            assert_eq!(all.of(host, port), None, "{host} {port}");
        }
        assert_eq!(Credentials::default().of("a.test", 80), None);
        assert!(!format!("{all:?}").contains("YQ"));
    }

    #[test]
    fn what_is_no_site_or_stands_twice_is_named() {
        let error = credentials(&[("a.test:80", "YQ=="), ("A.TEST.:80", "Yg==")]).unwrap_err();
        assert!(error.starts_with("A.TEST.:80 stands twice"), "{error}");
        let error = credentials(&[("a.test", "YQ==")]).unwrap_err();
        assert!(error.starts_with("\"a.test\""), "{error}");
    }
}
