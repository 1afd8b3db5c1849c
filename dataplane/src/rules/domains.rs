//! Lists of domains, as `-D`, `-t` and `-B` take them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use super::name::Name;
use crate::limits::HOST_BYTES_MAX;

/// Hosts by name. `example.com` stands for itself and its sub-domains, `*.example.com` and `.example.com` for the
/// sub-domains alone, an address for itself. Case does not matter, nor does a dot at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domains {
    all: bool,
    names: Arc<HashMap<Box<[u8]>, Scope>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Itself,
    Below,
    Both,
}

impl Domains {
    /// Takes a list. With `knows_all` the word `all` stands for every host.
    ///
    /// # Errors
    /// A sentence that names the first entry that is no domain.
    pub fn parse(list: &[String], knows_all: bool) -> Result<Self, String> {
        let (mut all, mut names) = (false, HashMap::new());
        for entry in list {
            if knows_all && entry.eq_ignore_ascii_case("all") {
                all = true;
                continue;
            }
            let (name, scope) = parse(entry).ok_or_else(|| {
                format!(
                    "{entry:?} is no domain: write a host such as example.com or *.example.com, without scheme, port or path, \
                     and names that are not ASCII as xn--…"
                )
            })?;
            let known = names.entry(name.into_boxed_slice()).or_insert(scope);
            if *known != scope {
                *known = Scope::Both;
            }
        }
        Ok(Self {
            all,
            names: Arc::new(names),
        })
    }

    pub fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty()
    }

    /// Whether a host, as an authority names it (without brackets), is on the list. Allocates nothing.
    pub fn contains(&self, host: &str) -> bool {
        if self.all || self.names.is_empty() {
            return self.all;
        }
        let Some(name) = Name::of(host) else {
            return false;
        };
        if let Some(Scope::Itself | Scope::Both) = self.names.get(&*name) {
            return true;
        }
        // The numbers of an address are no labels.
        let host = host.strip_suffix('.').unwrap_or(host);
        if name.last().is_some_and(u8::is_ascii_digit) && host.parse::<IpAddr>().is_ok() {
            return false;
        }
        let mut rest = &*name;
        while let Some(dot) = memchr::memchr(b'.', rest) {
            rest = &rest[dot + 1..];
            if let Some(Scope::Below | Scope::Both) = self.names.get(rest) {
                return true;
            }
        }
        false
    }
}

/// The name as it is looked up, and what of it is meant.
fn parse(entry: &str) -> Option<(Vec<u8>, Scope)> {
    let bare = entry
        .strip_prefix('[')
        .and_then(|e| e.strip_suffix(']'))
        .unwrap_or(entry);
    if bare.parse::<Ipv6Addr>().is_ok() {
        return Some((Name::of(bare)?.to_vec(), Scope::Itself));
    }
    let below = entry.strip_prefix("*.").or_else(|| entry.strip_prefix('.'));
    let name = below.unwrap_or(entry);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let good = |label: &str| {
        let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        !label.is_empty() && label.bytes().all(byte)
    };
    if name.len() > HOST_BYTES_MAX || !name.split('.').all(good) {
        return None;
    }
    let is_address = name.parse::<IpAddr>().is_ok();
    let scope = match below {
        Some(_) if is_address => return None,
        Some(_) => Scope::Below,
        None if is_address => Scope::Itself,
        None => Scope::Both,
    };
    Some((name.into_bytes(), scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(list: &[&str]) -> Domains {
        let list: Vec<String> = list.iter().map(|entry| (*entry).to_owned()).collect();
        Domains::parse(&list, true).unwrap()
    }

    #[test]
    fn a_domain_stands_for_itself_and_what_is_below_it() {
        let list = domains(&["Example.com", "*.wild.test", ".dotted.test", "one", "end.test."]);
        for (host, on_it) in [
            ("example.com", true),
            ("EXAMPLE.com.", true),
            ("www.example.com", true),
            ("a.b.example.com", true),
            ("notexample.com", false),
            ("example.com.evil.test", false),
            ("com", false),
            ("wild.test", false),
            ("a.wild.test", true),
            ("dotted.test", false),
            ("a.dotted.test", true),
            ("one", true),
            ("sub.one", true),
            ("a.end.test", true),
            ("", false),
            (".", false),
        ] {
            assert_eq!(list.contains(host), on_it, "{host}");
        }
        assert!(domains(&["*.both.test", "both.test"]).contains("both.test"));
        assert!(domains(&["both.test", "*.both.test"]).contains("a.both.test"));
    }

    #[test]
    fn an_address_stands_for_itself_alone() {
        let list = domains(&[
            "10.0.0.1",
            "1.2",
            "[2001:db8::1]",
            "::2",
            "6162:6364:6566:6768:696a:6b6c:6d6e:6f70",
        ]);
        for (host, on_it) in [
            ("10.0.0.1", true),
            ("5.10.0.0.1", false),
            ("9.9.1.2", false),
            ("2001:db8:0::1", true),
            ("2001:DB8::1", true),
            ("2001:db8::2", false),
            ("0:0::2", true),
            // As bytes it would be the address 6162:…:6f70.
            ("abcdefghijklmnop", false),
        ] {
            assert_eq!(list.contains(host), on_it, "{host}");
        }
    }

    #[test]
    fn the_word_all_stands_for_every_host_where_it_is_known() {
        assert!(domains(&["ALL"]).contains("anything.test") && domains(&["all"]).contains("::1"));
        let unknown = Domains::parse(&["all".to_owned()], false).unwrap();
        assert!(unknown.contains("all") && !unknown.contains("anything.test"));
        assert!(Domains::default().is_empty() && !domains(&["all"]).is_empty());
    }

    #[test]
    fn what_is_no_domain_is_named() {
        for bad in [
            "",
            "*",
            "http://a.test",
            "a.test:80",
            "a.test/x",
            "a*.test",
            "*.*.test",
            "a..test",
            "a b",
            "münchen.test",
            "*.10.0.0.1",
            "10.0.0.0/8",
        ] {
            let error = Domains::parse(&["fine.test".to_owned(), bad.to_owned()], true).unwrap_err();
            assert!(error.contains(&format!("{bad:?} is no domain")), "{error}");
        }
    }

    #[test]
    fn a_host_longer_than_any_is_on_no_list() {
        let list = domains(&["test"]);
        assert!(!list.contains(&format!("{}.test", "a".repeat(HOST_BYTES_MAX))));
    }
}
