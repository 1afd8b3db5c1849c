//! What is done for each request at both ends and allocates nothing: asking the operator's rules, finding and reading heads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;

use bytes::Bytes;
use dataplane::http::{Finder, Request, Response};
use dataplane::rules::{Domains, FastFail, Routes, Rules};
use dataplane::settings::Settings;

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

/// More threads than the regex crate keeps the needs of a search for.
const SHARDS: usize = 16;

/// `work` makes what one of several shards does then, at the same time as the others.
fn allocates_nothing<W: Fn()>(work: impl Fn() -> W + Sync) {
    // Whatever is wrong with it shows before others wait.
    work()();
    let together = Barrier::new(SHARDS);
    let shard = || {
        let work = work();
        // A shard's first searches fill what it keeps of them.
        work();
        together.wait();
        let before = COUNT.get();
        (0..10_000).for_each(|_| work());
        let count = COUNT.get() - before;
        drop(black_box(vec![0_u8; 100]));
        assert_ne!(COUNT.get(), before + count, "nothing is counted");
        count
    };
    let counts = thread::scope(|scope| {
        let shards = [(); SHARDS].map(|()| scope.spawn(shard));
        shards.map(|shard| shard.join().expect("a shard of this test"))
    });
    assert_eq!(counts, [0; SHARDS]);
}

#[test]
fn rules_are_asked_without_any() {
    let many: Vec<String> = (0..2_000).map(|n| format!("site-{n}.test")).collect();
    let expressions = [
        r"analytics-provider\.com",
        r"/unwanted/.*\.js",
        r"^https://[a-z]+\.ads\.",
    ]
    .map(str::to_owned);
    let rules = Rules {
        fast_fail: FastFail::compile(&expressions).unwrap(),
        routes: Routes {
            direct: Domains::parse(&many, false).unwrap(),
            tunnel: Domains::default(),
        },
        ..Rules::default()
    };
    let settings = Settings {
        rules: Arc::new(rules),
        ..Settings::default()
    };
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
    let shard = || {
        let settings = settings.own();
        let (hosts, requests) = (&hosts, &requests);
        move || {
            let Rules { fast_fail, routes, .. } = &*settings.rules;
            for host in hosts {
                black_box((routes.direct.contains(host), routes.of(host)));
            }
            for request in requests {
                assert_eq!(fast_fail.blocks_request(request), None);
            }
            assert_eq!(fast_fail.blocks_opaque("a.test", 8443), None);
        }
    };
    allocates_nothing(shard);
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
    allocates_nothing(|| read);
}
