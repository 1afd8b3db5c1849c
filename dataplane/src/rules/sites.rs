use std::collections::HashSet;

use crate::http::Authority;

/// Sites, each a host and a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sites(HashSet<(String, u16)>);

impl Sites {
    /// Of texts `host:port`.
    ///
    /// # Errors
    /// A sentence that names the first text that is none.
    pub fn parse(sites: &[String]) -> Result<Self, String> {
        let site = |text: &String| {
            let site = Authority::parse(text.as_bytes()).ok();
            let named = site.and_then(|site| Some((spelled(site.host), site.port?)));
            named.ok_or_else(|| format!("{text:?} is no host with a port (example.com:80)"))
        };
        sites.iter().map(site).collect::<Result<_, _>>().map(Self)
    }

    /// Whether this is one of them; `host` without brackets.
    pub fn contains(&self, host: &str, port: u16) -> bool {
        !self.0.is_empty() && self.0.contains(&(spelled(host), port))
    }
}

fn spelled(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_found_in_any_spelling() {
        let sites = Sites::parse(&["A.test:80".into(), "[::1]:8080".into()]).unwrap();
        assert!(sites.contains("a.TEST.", 80) && sites.contains("::1", 8080));
        assert!(!sites.contains("a.test", 81) && !sites.contains("b.test", 80));
        assert!(!Sites::default().contains("a.test", 80));
    }

    #[test]
    fn what_is_no_site_is_named() {
        for bad in ["a.test", "a.test:", "u@a.test:80", ":80", "a.test:99999"] {
            assert!(
                Sites::parse(&[bad.into()])
                    .unwrap_err()
                    .starts_with(&format!("{bad:?}")),
                "{bad}"
            );
        }
    }
}
