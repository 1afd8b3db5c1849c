use crate::http::page::{CAUSES, Page, cause, plain};
use crate::http::{Bad, Body, Finder, Framing, Response};

fn text(page: &Page<'_>) -> String {
    String::from_utf8(page.write()).unwrap()
}

#[test]
fn every_cause_has_a_page_that_parses() {
    for (name, status, failed, todo) in CAUSES {
        let page = Page {
            url: b"http://a.test/x",
            ..Page::new(name, 7)
        }
        .write();
        let n = Finder::response().find(&page).unwrap().unwrap();
        let response = Response::parse(&page[..n], "GET", false).unwrap();
        assert_eq!(response.status, *status);
        assert_eq!(response.framing, Framing::Length((page.len() - n) as u64));
        assert!(response.keep_alive && Body::new(response.framing).advance(&page[n..]).unwrap().done);
        let value = |name: &str| response.fields().find(|f| f.is(name)).map(|f| f.value.to_vec());
        assert_eq!(value("Culvert-Error"), Some(name.as_bytes().to_vec()));
        assert_eq!(value("Culvert-Settings"), Some(b"7".to_vec()));
        assert_eq!(value("Cache-Control"), Some(b"no-store".to_vec()));
        assert_eq!(value("Retry-After").is_some(), *name == "limit");
        let body = String::from_utf8(page[n..].to_vec()).unwrap();
        assert!(body.contains(failed) && body.contains(todo) && body.contains("http://a.test/x"));
    }
    assert_eq!(cause("not a name").0, "protocol");
    assert_eq!(cause("denied").1, 403);
}

#[test]
fn pages_escape_and_hold_no_credentials() {
    let page = Page {
        url: b"http://user:s3cret@a.test/@scope/<script>&\"'\xff\r\nX: y?token=s3cret#s3cret",
        detail: "via http://me:s3cret@proxy:3128\r\nand me:s3c@s3cret@host <b>",
        ..Page::new("upstream-proxy", 1)
    };
    let text = text(&page);
    assert!(
        !text.contains("s3c") && !text.contains("<script>") && !text.contains("<b>"),
        "{text}"
    );
    assert!(
        text.contains("http://***@a.test/@scope/&lt;script&gt;&amp;&quot;&#39;\u{fffd}  X: y</code>"),
        "{text}"
    );
    assert!(
        text.contains("<p>via http://***@proxy:3128 and ***@host &lt;b&gt;</p>"),
        "{text}"
    );
    assert_eq!(
        page.reason(),
        "http://***@a.test: via http://***@proxy:3128 and ***@host <b>"
    );
    let long = Page {
        detail: &"ä".repeat(10_000),
        ..Page::new("dns", 1)
    }
    .write();
    assert!(long.len() < 3_000);
}

#[test]
fn refused_heads_close_and_head_has_no_body() {
    let page = text(&Page::refused(
        Bad {
            status: 414,
            reason: "too long",
        },
        3,
    ));
    assert!(page.starts_with("HTTP/1.1 414 URI Too Long\r\n") && page.contains("\r\nConnection: close\r\n"));
    assert!(page.contains("Culvert-Error: bad-request\r\n") && page.contains("<p>too long</p>"));
    let page = text(&Page {
        head: true,
        ..Page::new("limit", 3)
    });
    assert!(page.ends_with("\r\n\r\n") && !page.contains("Content-Length: 0"));
    assert!(!page.contains("Connection: close"));
}

#[test]
fn plain_answers() {
    let answer = plain(200, "0123", true);
    let n = Finder::response().find(&answer).unwrap().unwrap();
    assert_eq!(&answer[n..], b"0123");
    assert!(!Response::parse(&answer[..n], "GET", false).unwrap().keep_alive);
}

#[test]
fn a_log_names_a_site_once_and_no_path() {
    let reason = |url: &str, detail: &str| {
        Page {
            url: url.as_bytes(),
            detail,
            ..Page::new("refused", 1)
        }
        .reason()
    };
    for (url, detail, expected) in [
        (
            "http://a.test:81/x?y",
            "the rule is /x",
            "http://a.test:81: the rule is /x",
        ),
        ("http://the/x", "the rule is /x", "http://the: the rule is /x"),
        (
            "http://a.test/",
            "a.test:80: nobody listens",
            "a.test:80: nobody listens",
        ),
        ("http://a.test/", "a.test.b:80: odd", "http://a.test: a.test.b:80: odd"),
        ("a.test:443", "a.test: no such name", "a.test: no such name"),
        ("[::1]:443", "::1:443: nobody listens", "::1:443: nobody listens"),
        ("http://[::1]/", "::1:80: nobody listens", "::1:80: nobody listens"),
        ("http://[::1]/x", "the rule is x", "http://[::1]: the rule is x"),
        ("a.test:443", "", "a.test:443"),
        ("", "a head\r\nthat is none", "a head that is none"),
        ("", "", ""),
    ] {
        assert_eq!(reason(url, detail), expected);
    }
    assert!(reason("", &"\u{e4}".repeat(10_000)).len() < 3_000);
}
