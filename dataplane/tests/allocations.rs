//! What is done for each request at both ends and allocates nothing: asking the operator's rules, finding and reading heads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use bytes::Bytes;
use dataplane::http::{Finder, Request, Response};
use dataplane::rules::{Domains, FastFail, Routes};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system's allocator's; a thread-local without a destructor is counted beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocates_nothing(work: impl Fn()) {
    // A shard's first searches fill what it keeps of them.
    work();
    let before = COUNT.get();
    (0..1_000).for_each(|_| work());
    assert_eq!(COUNT.get() - before, 0);
    drop(black_box(vec![0_u8; 100]));
    assert_ne!(COUNT.get(), before, "nothing is counted");
}

#[test]
fn rules_are_asked_without_any() {
    let many: Vec<String> = (0..2_000).map(|n| format!("site-{n}.test")).collect();
    let direct = Domains::parse(&many, false).unwrap();
    let routes = Routes {
        direct: direct.clone(),
        tunnel: Domains::default(),
    };
    let expressions = [
        r"analytics-provider\.com",
        r"/unwanted/.*\.js",
        r"^https://[a-z]+\.ads\.",
    ]
    .map(str::to_owned);
    let fast_fail = FastFail::compile(&expressions).unwrap();
    let hosts = [
        "a.b.site-1999.test",
        "SITE-7.Test.",
        "x.cdn-3.test",
        "nobody.test",
        "::ffff:10.0.0.1",
        "10.0.0.1",
    ];
    let heads = [
        "GET http://A.Test.:81/unwanted/x.css HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST http://[::1]/a?b HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT nobody.test:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    .map(|head| Bytes::from_static(head.as_bytes()));
    let requests = heads.each_ref().map(|head| Request::parse(head).unwrap());
    let ask = || {
        for host in hosts {
            black_box((direct.contains(host), routes.of(host)));
        }
        for request in &requests {
            assert_eq!(fast_fail.blocks_request(request), None);
        }
        assert_eq!(fast_fail.blocks_opaque("a.test", 8443), None);
    };
    allocates_nothing(ask);
}

#[test]
fn heads_are_found_and_read_without_any() {
    let request =
        b"GET http://a.test:81/x?y HTTP/1.1\r\nHost: a.test:81\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\n";
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\nETag: \"x\"\r\n\r\nhello";
    let read = || {
        assert_eq!(Finder::request().find(request), Ok(Some(request.len())));
        let request = Request::parse(request).unwrap();
        assert_eq!(request.authority.unwrap().port, Some(81));
        let length = Finder::response().find(answer).unwrap().unwrap();
        let answer = Response::parse(&answer[..length], request.method, false).unwrap();
        assert!(answer.keep_alive && answer.fields().count() == 3);
    };
    allocates_nothing(read);
}
