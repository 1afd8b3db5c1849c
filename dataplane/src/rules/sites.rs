//! Lists of sites, as `-a` names them.

use std::collections::HashMap;
use std::sync::Arc;

use super::name::Name;
use crate::http::Authority;

/// Sites, each a host and a port: exactly these, no sub-domain and no other port. Case does not matter, nor does a dot at
/// the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sites(Arc<HashMap<Box<[u8]>, Ports>>);

/// Each with its place in the list.
type Ports = HashMap<u16, usize>;

impl Sites {
    /// Of texts `host:port`; an IPv6 address has brackets.
    ///
    /// # Errors
    /// A sentence that names the first text that is none.
    pub fn parse(sites: &[String]) -> Result<Self, String> {
        let mut all = HashMap::<_, Ports>::new();
        for (place, text) in sites.iter().enumerate() {
            let site = Authority::parse(text.as_bytes()).ok();
            let named = site.and_then(|site| Some((Name::of(site.host)?, site.port?)));
            let (name, port) = named.ok_or_else(|| format!("{text:?} is no host with a port (example.com:80)"))?;
            let ports = all.entry(name.to_vec().into_boxed_slice()).or_default();
            ports.entry(port).or_insert(place);
        }
        Ok(Self(Arc::new(all)))
    }

    /// Whether this is one of them; `host` without brackets.
    pub fn contains(&self, host: &str, port: u16) -> bool {
        self.find(host, port).is_some()
    }

    /// Where in the list this site stands first; `host` without brackets. Allocates nothing.
    pub fn find(&self, host: &str, port: u16) -> Option<usize> {
        if self.0.is_empty() {
            return None;
        }
        let ports = self.0.get(&*Name::of(host)?)?;
        ports.get(&port).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites(list: &[&str]) -> Sites {
        let list: Vec<String> = list.iter().map(|site| (*site).to_owned()).collect();
        Sites::parse(&list).unwrap()
    }

    #[test]
    fn sites_are_found_in_any_spelling() {
        let sites = sites(&["A.test:80", "[::1]:8080", "a.test:81", "a.TEST.:80"]);
        for (host, port, place) in [
            ("a.TEST.", 80, Some(0)),
            ("a.test", 81, Some(2)),
            ("0:0::1", 8080, Some(1)),
            ("a.test", 82, None),
            ("b.test", 80, None),
            ("x.a.test", 80, None),
            ("test", 80, None),
            ("::1", 80, None),
            ("", 80, None),
        ] {
            assert_eq!(sites.find(host, port), place, "{host} {port}");
            assert_eq!(sites.contains(host, port), place.is_some(), "{host} {port}");
        }
        assert!(!Sites::default().contains("a.test", 80));
    }

    #[test]
    fn what_is_no_site_is_named() {
        for bad in ["a.test", "a.test:", "u@a.test:80", ":80", "a.test:99999", "::1:80"] {
            assert!(
                Sites::parse(&[bad.into()])
                    .unwrap_err()
                    .starts_with(&format!("{bad:?}")),
                "{bad}"
            );
        }
    }
}
