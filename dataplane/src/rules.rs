//! The operator's rules, compiled once and asked for each request. Sans-IO.

mod domains;
mod name;
mod sites;

use std::cell::RefCell;
use std::io::Write;
use std::net::IpAddr;

use regex::bytes::{RegexSet, RegexSetBuilder};

pub use domains::Domains;
pub use sites::Sites;

use crate::http::{Form, Request, Scheme};

use crate::limits::{
    FAST_FAIL_CACHE_BYTES_MAX, FAST_FAIL_NESTING_MAX, FAST_FAIL_PROGRAM_BYTES_MAX, FAST_FAIL_TEXT_BYTES_MAX,
};

/// The rules of a tunnel, ready to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// `-F`
    pub fast_fail: FastFail,
    /// `-D` and `-t`
    pub routes: Routes,
    /// `-B`: hosts whose TLS is left alone.
    pub no_bump: Domains,
    /// `-N`: the endpoint's cache has no part in anything.
    pub no_cache: bool,
    /// `-a`: sites that `sc` shows credentials to.
    pub auth: Sites,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Tunnel,
    /// From the cloud straight to the site.
    Direct,
}

/// Which hosts go through the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// `-D`: these do not.
    pub direct: Domains,
    /// `-t`: only these do, whatever `-D` says.
    pub tunnel: Domains,
}

impl Routes {
    /// Where requests for this host (without brackets) go. `localhost` means the tunnel host, on whatever list it is.
    pub fn of(&self, host: &str) -> Route {
        let direct = match self.tunnel.is_empty() {
            true => !self.direct.is_empty() && self.direct.contains(host),
            false => !self.tunnel.contains(host),
        };
        if direct && !is_localhost(host) {
            Route::Direct
        } else {
            Route::Tunnel
        }
    }
}

/// A name or address that means the host it is asked on (RFC 6761 section 6.3).
fn is_localhost(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let above = name.len().checked_sub("localhost".len());
    let named = above.is_some_and(|n| {
        let (below, end) = name.as_bytes().split_at(n);
        end.eq_ignore_ascii_case(b"localhost") && below.last().is_none_or(|b| *b == b'.')
    });
    named || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

thread_local! {
    /// The URL that is asked about: as long as the longest so far, and no request has a longer one than a target may be.
    static URL: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Spells a URL in one way: the host in lower case and without a dot at its end, the port only where it is not the scheme's.
fn spell(url: &mut Vec<u8>, scheme: Scheme, host: &str, port: u16, path: &[u8]) {
    let host = host.trim_end_matches('.');
    let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
    url.clear();
    for part in [scheme.as_str(), "://", open, host, close] {
        url.extend_from_slice(part.as_bytes());
    }
    url.make_ascii_lowercase();
    if port != scheme.default_port() {
        // Writing to a Vec cannot fail.
        let _ = write!(url, ":{port}");
    }
    if path.first() != Some(&b'/') {
        url.push(b'/');
    }
    url.extend_from_slice(path);
}

/// Expressions of which one that is found in a URL drops the request.
#[derive(Clone, Debug, Default)]
pub struct FastFail {
    /// None where there are no expressions: then a request costs nothing.
    set: Option<RegexSet>,
}

/// Equal if they were made of the same texts.
impl PartialEq for FastFail {
    fn eq(&self, other: &Self) -> bool {
        let texts = |rules: &Self| rules.set.as_ref().map(|set| set.patterns().to_vec());
        texts(self) == texts(other)
    }
}

impl Eq for FastFail {}

impl FastFail {
    /// Compiles regular expressions without back-references, so that each URL takes time in proportion to its
    /// length. They are searched anywhere in a URL, and case matters.
    ///
    /// # Errors
    /// A sentence that names the first expression that is none, or says that all together are too large.
    pub fn compile(fast_fail: &[String]) -> Result<Self, String> {
        if fast_fail.is_empty() {
            return Ok(Self::default());
        }
        let bytes: usize = fast_fail.iter().map(String::len).sum();
        if bytes > FAST_FAIL_TEXT_BYTES_MAX {
            return Err(format!(
                "the expressions have {bytes} bytes, at most {FAST_FAIL_TEXT_BYTES_MAX} all together"
            ));
        }
        let build = |texts: &[String]| {
            RegexSetBuilder::new(texts)
                .size_limit(FAST_FAIL_PROGRAM_BYTES_MAX)
                .dfa_size_limit(FAST_FAIL_CACHE_BYTES_MAX)
                .nest_limit(FAST_FAIL_NESTING_MAX)
                .build()
        };
        match build(fast_fail) {
            Ok(set) => Ok(Self { set: Some(set) }),
            Err(regex::Error::CompiledTooBig(limit)) => Err(format!(
                "the expressions need more than {} MiB: use fewer or simpler ones",
                limit >> 20
            )),
            // The set's own error does not say whose it is.
            Err(_) => {
                let bad = fast_fail.iter().find(|text| build(std::slice::from_ref(text)).is_err());
                let text = bad.map_or("", String::as_str);
                Err(format!(
                    "{text:?} is no regular expression (a comma ends one: write \\x2c for a comma)"
                ))
            }
        }
    }

    /// Whether there is nothing to be asked.
    pub fn is_empty(&self) -> bool {
        self.set.is_none()
    }

    /// The first expression that is found in the URL of a request; of a CONNECT that is `https://host/`. What is not dropped
    /// allocates nothing.
    pub fn blocks_request(&self, request: &Request<'_>) -> Option<&str> {
        let authority = request.authority?;
        let (scheme, path) = match request.form {
            Form::Authority => (Scheme::Https, &b"/"[..]),
            _ => (request.scheme.unwrap_or(Scheme::Http), request.path),
        };
        let port = authority.port_or(scheme.default_port());
        self.blocks_spelled(scheme, authority.host, port, path)
    }

    /// As [`FastFail::blocks_request`], of what stays opaque: of its URLs only scheme and site are known.
    pub fn blocks_opaque(&self, host: &str, port: u16) -> Option<&str> {
        self.blocks_spelled(Scheme::Https, host, port, b"/")
    }

    fn blocks_spelled(&self, scheme: Scheme, host: &str, port: u16, path: &[u8]) -> Option<&str> {
        if self.is_empty() {
            return None;
        }
        URL.with_borrow_mut(|url| {
            spell(url, scheme, host, port, path);
            self.blocks(url)
        })
    }

    /// The first expression that is found in the URL.
    pub fn blocks(&self, url: &[u8]) -> Option<&str> {
        let set = self.set.as_ref().filter(|set| set.is_match(url))?;
        let first = set.matches(url).into_iter().next()?;
        Some(&set.patterns()[first])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Result<FastFail, String> {
        FastFail::compile(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn an_expression_is_searched_anywhere_in_the_url() {
        let rules = rules(&[r"analytics-provider\.com", r"/ads/.*\.js$", "^https://"]).unwrap();
        for (url, rule) in [
            ("http://www.analytics-provider.com/x", Some(r"analytics-provider\.com")),
            (
                "http://a.test/?from=analytics-provider.com",
                Some(r"analytics-provider\.com"),
            ),
            ("http://a.test/ads/1/x.js", Some(r"/ads/.*\.js$")),
            ("http://a.test/ads/1/x.js?v=1", None),
            ("https://a.test/", Some("^https://")),
            ("http://a.test/ADS/x.js", None),
        ] {
            assert_eq!(rules.blocks(url.as_bytes()), rule, "{url}");
        }
    }

    #[test]
    fn of_several_the_first_is_named() {
        let rules = rules(&["b", "a"]).unwrap();
        assert_eq!(rules.blocks(b"http://ab/"), Some("b"));
    }

    #[test]
    fn bytes_that_are_no_text_are_searched_too() {
        let rules = rules(&["/x"]).unwrap();
        assert_eq!(rules.blocks(b"http://a/\xff/x"), Some("/x"));
    }

    #[test]
    fn no_rules_block_nothing_and_say_so() {
        let rules = rules(&[]).unwrap();
        assert!(rules.is_empty());
        assert_eq!(rules.blocks(b"http://a/"), None);
    }

    #[test]
    fn what_is_no_expression_is_named() {
        for bad in ["(", "a{1", r"(a)\1", "(?=x)"] {
            let text = rules(&["fine", bad]).unwrap_err();
            assert!(text.contains(&format!("{bad:?}")) && text.contains("comma"), "{text}");
        }
    }

    #[test]
    fn expressions_that_would_fill_the_memory_are_refused() {
        let text = rules(&[r"(\w{100}){1000}"]).unwrap_err();
        assert!(text.contains("MiB"), "{text}");
        // Small as a program, but gigabytes while it is parsed.
        let text = rules(&[r"\w".repeat(500).as_str(); 4_000]).unwrap_err();
        assert!(text.contains("4000000 bytes"), "{text}");
        let deep = format!("{}a{}", "(".repeat(1_000), ")".repeat(1_000));
        assert!(rules(&[&deep]).is_err());
    }

    #[test]
    fn a_url_costs_time_in_proportion_to_its_length() {
        // Exponential for an engine that backtracks.
        let rules = rules(&["(a+)+$"]).unwrap();
        let url = [&b"a".repeat(16_000)[..], b"!"].concat();
        assert_eq!(rules.blocks(&url), None);
    }

    fn routes(direct: &[&str], tunnel: &[&str]) -> Routes {
        let list = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            Domains::parse(&names, false).unwrap()
        };
        Routes {
            direct: list(direct),
            tunnel: list(tunnel),
        }
    }

    #[test]
    fn what_is_not_direct_goes_through_the_tunnel() {
        let none = routes(&[], &[]);
        assert_eq!(none.of("a.test"), Route::Tunnel);
        let direct = routes(&["cdn.test"], &[]);
        assert_eq!(direct.of("cdn.test"), Route::Direct);
        assert_eq!(direct.of("x.CDN.test."), Route::Direct);
        assert_eq!(direct.of("a.test"), Route::Tunnel);
    }

    #[test]
    fn a_list_for_the_tunnel_overrides_the_other_one() {
        let both = routes(&["a.intern.test", "cdn.test"], &["intern.test"]);
        assert_eq!(both.of("a.intern.test"), Route::Tunnel);
        assert_eq!(both.of("cdn.test"), Route::Direct);
        assert_eq!(both.of("other.test"), Route::Direct);
    }

    #[test]
    fn localhost_is_the_tunnel_host_on_whatever_list() {
        let routes = routes(&["localhost", "127.0.0.1"], &["intern.test"]);
        for host in [
            "localhost",
            "LOCALHOST.",
            "app.localhost",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
        ] {
            assert_eq!(routes.of(host), Route::Tunnel, "{host}");
        }
        for host in ["notlocalhost", "localhost.test", "128.0.0.1", "::2", ""] {
            assert_eq!(routes.of(host), Route::Direct, "{host}");
        }
    }
}
