//! What the tunnel's cache does otherwise than http-cache-tests ask, and why. A test that fails without being here fails
//! the suite, and so does one that is here and passes.

/// Tests that are not passed for one reason.
pub struct Miss {
    pub why: &'static str,
    pub tests: &'static [&'static str],
}

pub struct Edition {
    /// A kind of test, how many there are, how many must be passed at least. A check only asks what a cache does.
    pub kinds: [(&'static str, usize, usize); 3],
    pub misses: [&'static [Miss]; 2],
}

/// The package's version 0.4.5, older than RFC 9111. That, or the repository since, has overruled 15 of what it requires:
/// at most one of the others may fail. Of the optimal ones as large a part must pass as in [`CHECKOUT`].
pub const PUBLISHED: Edition = Edition {
    kinds: [("required", 157, 141), ("optimal", 86, 72), ("check", 86, 0)],
    misses: [OF_BOTH, OF_PUBLISHED],
};

/// The repository as of July 2026, without the tests for content delivery networks.
pub const CHECKOUT: Edition = Edition {
    kinds: [("required", 150, 149), ("optimal", 98, 82), ("check", 93, 0)],
    misses: [OF_BOTH, OF_CHECKOUT],
};

const OF_BOTH: &[Miss] = &[
    Miss {
        why: "Set-Cookie is never stored, so that it cannot reach another browser session.",
        tests: &[
            "headers-store-Set-Cookie",
            // Overruled: only a check since.
            "304-etag-update-response-Set-Cookie",
        ],
    },
    Miss {
        why: "Overruled: a 304 with another tag is about another answer, and the site is asked again (RFC 9111 section 4.3.4).",
        tests: &["304-etag-update-response-ETag"],
    },
    Miss {
        why: "Overruled: an Age that is no integer is ignored (RFC 9111 section 5.1).",
        tests: &["age-parse-parameter", "age-parse-numeric-parameter"],
    },
    Miss {
        why: "What a site sends in part is relayed and not stored; ranges are served from whole answers.",
        tests: &[
            "partial-store-partial-complete",
            "partial-store-partial-reuse-partial",
            "partial-store-partial-reuse-partial-absent",
            "partial-store-partial-reuse-partial-byterange",
            "partial-store-partial-reuse-partial-suffix",
        ],
    },
    Miss {
        why: "Only answers to GET are stored.",
        tests: &["method-POST"],
    },
    Miss {
        why: "Vary compares lists in their order and as a whole: what a site makes of a language list is not known here.",
        tests: &["vary-normalise-lang-order", "vary-normalise-lang-select"],
    },
    Miss {
        why: "The stored Date stands for Last-Modified and is after the browser's: modified (RFC 9111 section 4.3.2).",
        tests: &["conditional-lm-fresh-no-lm"],
    },
    Miss {
        why: "A lifetime that is no integer is none, and of two the shorter counts (RFC 9111 section 4.2.1).",
        tests: &[
            "freshness-max-age-100a",
            "freshness-max-age-a100",
            "freshness-max-age-decimal-five",
            "freshness-max-age-decimal-zero",
            "freshness-max-age-two-fresh-stale-sameline",
            "freshness-max-age-two-fresh-stale-sepline",
            "freshness-max-age-two-stale-fresh-sameline",
            "freshness-max-age-two-stale-fresh-sepline",
        ],
    },
    Miss {
        why: "A guessed lifetime is a tenth of the time since the last change, here 3 s at most: the test waits 3 s.",
        tests: &["heuristic-delta-5", "heuristic-delta-10", "heuristic-delta-30"],
    },
    Miss {
        why: "A tag without quotes is compared and sent on as it is (RFC 9110 section 8.8.3 knows none).",
        tests: &[
            "conditional-etag-forward-unquoted",
            "conditional-etag-quoted-respond-unquoted",
            "conditional-etag-strong-generate-unquoted",
            "conditional-etag-unquoted-respond-quoted",
        ],
    },
    Miss {
        why: "Node writes the tag's ü as UTF-8 where it is the site, as ISO 8859-1 where it is the browser: two tags.",
        tests: &["conditional-etag-strong-respond-obs-text"],
    },
    Miss {
        why: "The site is asked for a variant by that variant's own tag alone.",
        tests: &["conditional-etag-vary-headers-mismatch"],
    },
    Miss {
        why: "HEAD to what is stale gets the site's own answer; without a validator that confirms nothing that is stored.",
        tests: &[
            "head-200-freshness-update",
            "head-200-retain",
            "head-200-update",
            "head-410-update",
        ],
    },
    Miss {
        why: "A failure is relayed unless the site or the browser said stale-if-error (RFC 5861 section 4).",
        tests: &["stale-503"],
    },
    Miss {
        why: "Warning is obsolete (RFC 9111 section 5.5).",
        tests: &["stale-warning-become", "stale-warning-stored"],
    },
];

const OF_PUBLISHED: &[Miss] = &[
    Miss {
        why: "Overruled: of an Age its first member counts, and one that is no integer is ignored (RFC 9111 section 5.1).",
        tests: &[
            "age-parse-dup-0",
            "age-parse-dup-0-twoline",
            "age-parse-dup-old",
            "age-parse-float",
            "age-parse-negative",
            "age-parse-nonnumeric",
            "age-parse-prefix-twoline",
        ],
    },
    Miss {
        why: "Overruled: nothing stale is given, but this edition takes the error page for an answer from the cache.",
        tests: &[
            "stale-close-must-revalidate",
            "stale-close-no-cache",
            "stale-close-proxy-revalidate",
            "stale-close-s-maxage=2",
        ],
    },
    Miss {
        why: "Expires with a fault, or two that differ, is in the past (RFC 9111 sections 4.2.1 and 5.3).",
        tests: &[
            "freshness-expires-32bit",
            "freshness-expires-far-future",
            "freshness-expires-invalid-1-digit-hour",
            "freshness-expires-invalid-2-digit-year",
            "freshness-expires-invalid-aest",
            "freshness-expires-invalid-date-dashes",
            "freshness-expires-invalid-multiple-lines",
            "freshness-expires-invalid-multiple-spaces",
            "freshness-expires-invalid-no-comma",
            "freshness-expires-invalid-time-periods",
            "freshness-expires-invalid-utc",
        ],
    },
    Miss {
        why: "Pragma: no-cache counts where there is no Cache-Control (RFC 9111 section 5.4).",
        tests: &["pragma-request-no-cache"],
    },
];

const OF_CHECKOUT: &[Miss] = &[
    Miss {
        why: "What the stored body depends on is not updated by a 304 (RFC 9111 section 3.2).",
        tests: &[
            "304-etag-update-response-Content-Encoding",
            "304-etag-update-response-Content-MD5",
            "304-etag-update-response-Content-Range",
        ],
    },
    Miss {
        why: "An answer that comes from the site gets no Age (RFC 9111 section 4 wants it of stored ones).",
        tests: &["other-age-delay"],
    },
];
