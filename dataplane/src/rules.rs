//! The operator's rules, compiled once and asked for each request. Sans-IO.

use regex::bytes::{RegexSet, RegexSetBuilder};

use crate::limits::{
    FAST_FAIL_CACHE_BYTES_MAX, FAST_FAIL_NESTING_MAX, FAST_FAIL_PROGRAM_BYTES_MAX, FAST_FAIL_TEXT_BYTES_MAX,
};

/// The rules of a tunnel, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// None where there are no expressions: then a request costs nothing.
    fast_fail: Option<RegexSet>,
}

/// Two sets of rules are equal if they were made of the same texts.
impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        let texts = |rules: &Self| rules.fast_fail.as_ref().map(|set| set.patterns().to_vec());
        texts(self) == texts(other)
    }
}

impl Eq for Rules {}

impl Rules {
    /// Compiles `-F`: regular expressions without back-references, so that each URL takes time in proportion to its
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
            Ok(set) => Ok(Self { fast_fail: Some(set) }),
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

    /// Whether any URL has to be asked for at all.
    pub fn has_fast_fail(&self) -> bool {
        self.fast_fail.is_some()
    }

    /// The first expression of `-F` that is found in the URL.
    pub fn blocks(&self, url: &[u8]) -> Option<&str> {
        let set = self.fast_fail.as_ref().filter(|set| set.is_match(url))?;
        let first = set.matches(url).into_iter().next()?;
        Some(&set.patterns()[first])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Result<Rules, String> {
        Rules::compile(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
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
        assert!(!rules.has_fast_fail());
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
}
