//! Shards that use one cache at once.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;

const THREADS: usize = 4;
const ROUNDS: usize = 1_500;
const URLS: usize = 24;

/// A cheap sequence that looks like none.
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    (*state >> 33) as usize
}

#[test]
fn each_url_keeps_its_own_content_and_the_budget_holds() {
    let limit = 250_000;
    let cache = Cache::new(limit, RandomState::new());
    let begun = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (cache, begun) = (&cache, &begun);
            scope.spawn(move || {
                let mut trial = Trial::new();
                trial.cache = Arc::clone(cache);
                let mut random = thread as u64;
                begun.wait();
                for _ in 0..ROUNDS {
                    let n = next(&mut random) % URLS;
                    let (path, body) = (format!("/{n}"), format!("{n} ").repeat(3_000));
                    let told: &[&str] = &["Cache-Control: max-age=5, stale-while-revalidate=5", "ETag: \"a\""];
                    match next(&mut random) % 8 {
                        0 => drop(trial.get(&format!("POST {path}"), &[], (200, &[], ""))),
                        1 => trial.sleep(1),
                        2 => drop(trial.get(&format!("HEAD {path}"), &[], (200, told, ""))),
                        _ => {
                            // Another thread may be on its way: then it is not waited for.
                            let got = trial.get_alone(&path, (200, told, &body));
                            assert!(got.body == body, "{path}");
                        }
                    }
                    assert!(cache.counts().bytes_held <= limit as u64);
                }
            });
        }
    });
    let counts = cache.counts();
    assert!(
        counts.hits > 100 && counts.evicted > 100 && counts.invalidated > 100,
        "{counts:?}"
    );
}

#[test]
fn of_many_at_once_one_asks_the_site() {
    let cache = Cache::new(1 << 20, RandomState::new());
    let (asked_site, begun) = (AtomicUsize::new(0), Barrier::new(THREADS));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let (cache, asked_site, begun) = (&cache, &asked_site, &begun);
            scope.spawn(move || {
                let mut trial = Trial::new();
                trial.cache = Arc::clone(cache);
                let bytes = request("/", &[]);
                let parsed = Request::parse(&bytes).unwrap();
                let asked = Asked::read(&parsed, SITE).unwrap();
                let first = trial.cache.look_up(&asked, None, trial.now);
                // All have looked before the first one is answered.
                begun.wait();
                let told = response(200, &["Cache-Control: max-age=60"], "page");
                let mut got = Got::default();
                let look = match first {
                    Look::Follow(follow) => {
                        let waker = std::task::Waker::from(Arc::new(Unpark(std::thread::current())));
                        while follow.poll(&waker).is_none() {
                            std::thread::park();
                        }
                        trial.cache.look_up(&asked, Some(Outcome::Shared), trial.now)
                    }
                    look => look,
                };
                match look {
                    Look::Ask(fetch) => {
                        asked_site.fetch_add(1, SeqCst);
                        trial.fetch(fetch, &asked, &told, "page", &mut got);
                    }
                    Look::Hit(hit) => trial.deliver(&hit, &asked, &mut got),
                    _ => panic!(),
                }
                assert_eq!(got.body, "page");
            });
        }
    });
    assert_eq!(asked_site.load(SeqCst), 1);
    assert_eq!(cache.counts().collapsed, THREADS as u64 - 1);
}

struct Unpark(std::thread::Thread);

impl std::task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
