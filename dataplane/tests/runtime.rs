//! The runtime of a shard on both drivers.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use dataplane::limits::{FRAME_HEADER_BYTES, TURN_EXCHANGES_MAX};
use dataplane::shard::buffers::Buffers;
use dataplane::shard::pair::{self, Either};
use dataplane::shard::ring;
use dataplane::shard::runtime::{self, Driver, Runtime, Socket};
use dataplane::shard::signal::Signal;
use dataplane::shard::timers::{self, Alarm};
use dataplane::shard::transport::Transport;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode};

/// Runs `test` on epoll, and on io_uring where the kernel allows it.
fn on_both_drivers<F: Future<Output = ()>>(test: impl Fn() -> F) {
    let test = || async {
        timers::timeout(Duration::from_secs(60), test())
            .await
            .expect("ends in a minute")
    };
    let epoll = Runtime::new(Driver::Epoll).unwrap();
    assert_eq!(epoll.driver(), Driver::Epoll);
    epoll.run(test());
    match Runtime::new(Driver::IoUring) {
        Ok(ring) => {
            assert_eq!(ring.driver(), Driver::IoUring);
            ring.run(test());
        }
        Err(e) => eprintln!("io_uring is refused here, only epoll was tested: {e}"),
    }
}

/// What cannot fail, for [`pair::both`].
async fn well(future: impl Future<Output = ()>) -> Result<(), ()> {
    future.await;
    Ok(())
}

fn pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    (Socket::tcp(near.into()).unwrap(), far)
}

#[test]
fn auto_takes_some_driver() {
    let runtime = Runtime::new(Driver::Auto).unwrap();
    assert_ne!(runtime.driver(), Driver::Auto);
    assert_eq!(runtime.run(async { 7 }), 7);
}

#[test]
fn dropped_waits_lose_no_byte() {
    on_both_drivers(|| async {
        let (near, mut far) = pair();
        for _ in 0..100 {
            assert!(timers::timeout(Duration::ZERO, near.readable()).await.is_none());
        }
        far.write_all(b"whole").unwrap();
        near.readable().await.unwrap();
        let mut buffers = [BytesMut::with_capacity(2), BytesMut::with_capacity(64)];
        assert_eq!(near.try_read(&mut buffers, 4).unwrap(), 4, "no more than the limit");
        assert_eq!((&buffers[0][..], &buffers[1][..]), (&b"wh"[..], &b"ol"[..]));
        assert_eq!(near.try_read(&mut buffers[1..], 4).unwrap(), 1);
        let again = near.try_read(&mut buffers[1..], 4).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::WouldBlock);
        drop(far);
        near.readable().await.unwrap();
        assert_eq!(near.try_read(&mut buffers[1..], 4).unwrap(), 0, "the end");
    });
}

/// One of the shard's set, as browsers and sites have it.
fn watched_pair() -> (Socket, TcpStream) {
    let (near, far) = pair();
    (near.watched(), far)
}

/// What is there now, at most `limit` bytes; none if nothing is.
fn take(near: &Socket, limit: usize) -> Option<Vec<u8>> {
    let mut buffer = [BytesMut::with_capacity(64)];
    match near.try_read(&mut buffer, limit) {
        Ok(_) => Some(buffer[0].to_vec()),
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        Err(e) => panic!("{e}"),
    }
}

async fn is_readable(near: &Socket) -> bool {
    timers::timeout(Duration::from_millis(50), near.readable())
        .await
        .is_some()
}

#[test]
fn what_a_read_left_can_be_read_without_new_bytes() {
    on_both_drivers(|| async {
        let (near, mut far) = watched_pair();
        assert!(!is_readable(&near).await && !near.has_input());
        far.write_all(b"abcdef").unwrap();
        for part in [&b"ab"[..], b"cd", b"ef"] {
            assert!(is_readable(&near).await);
            assert_eq!(take(&near, 2).unwrap(), part);
        }
        assert!(near.has_input(), "all that was asked for: there may be more");
        assert_eq!(take(&near, 2), None);
        assert!(!near.has_input() && !is_readable(&near).await);
        far.write_all(b"g").unwrap();
        assert!(is_readable(&near).await && near.has_input());
        assert_eq!(take(&near, 2).unwrap(), b"g");
        assert!(!near.has_input() && !is_readable(&near).await);
    });
}

#[test]
fn an_end_is_heard_with_the_last_bytes_and_after_them() {
    on_both_drivers(|| async {
        for together in [true, false] {
            let (near, mut far) = watched_pair();
            assert!(!is_readable(&near).await);
            far.write_all(b"last").unwrap();
            if together {
                far.shutdown(Shutdown::Write).unwrap();
            }
            assert!(is_readable(&near).await);
            assert_eq!(take(&near, 64).unwrap(), b"last");
            assert_eq!(is_readable(&near).await, together);
            far.shutdown(Shutdown::Write).unwrap();
            for _ in 0..3 {
                assert!(is_readable(&near).await);
                assert_eq!(take(&near, 64).unwrap(), b"");
            }
            // Our own direction goes on.
            near.writable().await.unwrap();
            near.write_all(b"still").await.unwrap();
            let mut heard = [0; 5];
            far.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"still");
        }
    });
}

/// Whoever has always something to read waits for it without waiting: the others have their turn nevertheless.
#[test]
fn a_socket_that_is_always_readable_keeps_nobody_out() {
    on_both_drivers(|| async {
        let (near, mut far) = watched_pair();
        far.write_all(&[7; 1_000]).unwrap();
        let turns = Rc::new(Cell::new(0));
        let (others, done) = (turns.clone(), Rc::new(Cell::new(false)));
        let over = done.clone();
        runtime::spawn(async move {
            while !over.get() {
                others.set(others.get() + 1);
                runtime::yield_now().await;
            }
        });
        for _ in 0..1_000 {
            near.readable().await.unwrap();
            assert_eq!(take(&near, 1).unwrap(), [7]);
        }
        done.set(true);
        assert!(turns.get() > 20, "{} turns", turns.get());
    });
}

#[test]
fn a_reset_wakes_reader_and_writer() {
    on_both_drivers(|| async {
        let (near, far) = watched_pair();
        fill(&near);
        let reset = async {
            assert!(!is_readable(&near).await);
            socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
            drop(far);
        };
        let waits = async { pair::both(near.readable(), near.writable()).await.map_err(drop) };
        pair::both(well(reset), waits).await.unwrap();
        assert!(near.try_read(&mut [BytesMut::with_capacity(1)], 1).is_err());
    });
}

/// Writes until the kernel takes no more.
fn fill(near: &Socket) -> usize {
    let (chunk, mut written) = (vec![7; 1 << 20], 0);
    loop {
        match near.try_write(&[std::io::IoSlice::new(&chunk)]) {
            Ok(more) => written += more,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return written,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn room_is_heard_of_each_time_it_was_out() {
    on_both_drivers(|| async {
        let (near, mut far) = watched_pair();
        near.writable().await.unwrap();
        for _ in 0..3 {
            // The other side's kernel takes some more for a while.
            let mut rest = fill(&near);
            while timers::timeout(Duration::from_millis(50), near.writable())
                .await
                .is_some()
            {
                rest += fill(&near);
            }
            let mut drained = vec![0; 1 << 20];
            while rest > 0 {
                rest -= far.read(&mut drained).unwrap();
            }
            near.writable().await.unwrap();
        }
    });
}

/// More of them than are taken from the kernel at once, and places that others had before.
#[test]
fn all_that_stir_together_are_heard() {
    on_both_drivers(|| async {
        for _ in 0..2 {
            let pairs: Vec<_> = (0..300).map(|_| watched_pair()).collect();
            for (near, _) in &pairs {
                assert!(timers::timeout(Duration::ZERO, near.readable()).await.is_none());
            }
            for (_, far) in &pairs {
                (&*far).write_all(b"x").unwrap();
            }
            for (near, _) in &pairs {
                near.readable().await.unwrap();
                assert_eq!(take(near, 64).unwrap(), b"x");
            }
        }
    });
}

/// What sockets wake has its turn after few of them where they carry HTTP, and once for all that relay.
#[test]
fn sockets_that_stir_together_are_served_in_turns() {
    const SOCKETS: usize = 3 * TURN_EXCHANGES_MAX;
    let in_turns = vec![TURN_EXCHANGES_MAX; 3];
    for (relays, turns) in [
        (&[][..], &in_turns),
        (&[true], &vec![SOCKETS]),
        (&[true, false], &in_turns),
    ] {
        on_both_drivers(|| async {
            let pairs: Vec<_> = (0..SOCKETS).map(|_| watched_pair()).collect();
            let mut fars = Vec::new();
            let (heard, woken) = (Rc::new(Cell::new(0)), Rc::new(Signal::new()));
            for (near, far) in pairs {
                fars.push(far);
                relays.iter().for_each(|relays| near.set_relay(*relays));
                let (heard, woken) = (heard.clone(), woken.clone());
                runtime::spawn(async move {
                    near.readable().await.unwrap();
                    heard.set(heard.get() + 1);
                    woken.raise();
                });
            }
            // All wait.
            runtime::yield_now().await;
            for far in &mut fars {
                far.write_all(b"x").unwrap();
            }
            let mut served = Vec::new();
            while served.iter().sum::<usize>() < SOCKETS {
                woken.wait().await;
                served.push(heard.take());
            }
            assert_eq!(&served, turns);
        });
    }
}

/// Whatever the sizes of reads and writes, both directions at once, each byte arrives and nobody waits for ever.
#[test]
fn watched_sockets_move_all_in_any_steps() {
    const BYTES: usize = 4 << 20;
    on_both_drivers(|| async {
        let (near, far) = watched_pair();
        let step = |seed: &mut u32| {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            1 << (*seed >> 28)
        };
        let mut sender = far.try_clone().unwrap();
        let sends = std::thread::spawn(move || {
            let (mut seed, mut left, chunk) = (1, BYTES, vec![7; 1 << 15]);
            while left > 0 {
                let size = step(&mut seed).min(left);
                sender.write_all(&chunk[..size]).unwrap();
                left -= size;
            }
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut receiver = far;
        let receives = std::thread::spawn(move || {
            let (mut seed, mut received, mut buffer) = (2, 0, vec![0; 1 << 15]);
            loop {
                match receiver.read(&mut buffer[..step(&mut seed)]).unwrap() {
                    0 => return received,
                    n => received += n,
                }
            }
        });
        let read = async {
            let (mut seed, mut received) = (3, 0);
            loop {
                let mut buffer = [BytesMut::with_capacity(step(&mut seed))];
                match near.try_read(&mut buffer, usize::MAX) {
                    Ok(0) => break,
                    Ok(n) => received += n,
                    Err(_) => near.readable().await.unwrap(),
                }
            }
            assert_eq!(received, BYTES);
        };
        let write = async {
            let (mut seed, mut left, chunk) = (4, BYTES, vec![7; 1 << 15]);
            while left > 0 {
                match near.try_write(&[std::io::IoSlice::new(&chunk[..step(&mut seed).min(left)])]) {
                    Ok(n) => left -= n,
                    Err(_) => near.writable().await.unwrap(),
                }
            }
            near.shutdown(Shutdown::Write);
        };
        pair::both(well(read), well(write)).await.unwrap();
        sends.join().unwrap();
        assert_eq!(receives.join().unwrap(), BYTES);
    });
}

/// A shard that never waits hears of its sockets nevertheless: the kernel keeps what has completed until it is asked.
#[test]
fn tasks_that_keep_waking_each_other_starve_no_socket() {
    const ROUNDS: u32 = 100_000;
    on_both_drivers(|| async {
        let (near, far) = pair();
        let signals = Rc::new([Signal::new(), Signal::new()]);
        let (heard, rounds) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        for side in 0..2 {
            let (signals, heard, rounds) = (signals.clone(), heard.clone(), rounds.clone());
            let mut far = far.try_clone().unwrap();
            runtime::spawn(async move {
                while !heard.get() && rounds.get() < ROUNDS {
                    signals[side].wait().await;
                    rounds.set(rounds.get() + 1);
                    if rounds.get() == 1_000 {
                        far.write_all(b"x").unwrap();
                    }
                    signals[1 - side].raise();
                }
            });
        }
        assert!(timers::timeout(Duration::ZERO, near.readable()).await.is_none());
        signals[0].raise();
        near.readable().await.unwrap();
        heard.set(true);
        assert!(
            (1_000..ROUNDS / 2).contains(&rounds.get()),
            "heard after {} rounds",
            rounds.get()
        );
    });
}

#[test]
fn an_alarm_rings_for_whoever_waits_now() {
    on_both_drivers(|| async {
        let alarm = Rc::new(Alarm::default());
        let moment = || runtime::now() + Duration::from_millis(50);
        // Set by a task that is over before it rings, as a connection's is by one request for the next.
        let (set, done) = (alarm.clone(), Rc::new(Signal::default()));
        let over = done.clone();
        runtime::spawn(async move {
            assert!(timers::timeout(Duration::ZERO, set.until(moment())).await.is_none());
            over.raise();
        });
        done.wait().await;
        let rings = alarm.until(moment());
        assert!(timers::timeout(Duration::from_secs(20), rings).await.is_some());
    });
}

#[test]
fn connects_and_is_refused() {
    on_both_drivers(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = Socket::connect(address).await.unwrap();
        assert_eq!(socket.peer_address(), Some(address));
        let (mut far, _) = listener.accept().unwrap();
        socket.write_all(b"hello").await.unwrap();
        socket.shutdown(Shutdown::Write);
        let mut all = Vec::new();
        far.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"hello");
        drop(listener);
        assert_eq!(
            Socket::connect(address).await.err().unwrap().kind(),
            ErrorKind::ConnectionRefused
        );
    });
}

#[test]
fn links_move_bulk_both_ways_at_once() {
    on_both_drivers(|| async {
        let (near, far) = pair();
        let far = Rc::new(Socket::tcp(far.into()).unwrap());
        let near = Rc::new(near);
        let pattern = |n: usize| (0..n).map(|i| (i * 31 + i / 251) as u8).collect::<Vec<_>>();
        let send = |socket: Rc<Socket>| async move {
            let mut out = pattern(128 * 1024);
            for _ in 0..64 {
                let (result, empty) = socket.write_link(out).await;
                result.unwrap();
                assert!(empty.is_empty());
                out = empty;
                out.extend(pattern(128 * 1024));
            }
            socket.shutdown(Shutdown::Write);
        };
        let receive = |socket: Rc<Socket>| async move {
            let mut all = BytesMut::new();
            loop {
                all.reserve(64 * 1024);
                let (result, buffer) = socket.read_link(all).await;
                all = buffer;
                if result.unwrap() == 0 {
                    break;
                }
            }
            assert!(all[..] == pattern(128 * 1024).repeat(64)[..], "bytes differ");
        };
        let up = pair::both(well(send(near.clone())), well(receive(far.clone())));
        let down = pair::both(well(send(far.clone())), well(receive(near.clone())));
        pair::both(up, down).await.unwrap();
    });
}

#[test]
fn a_shutdown_completes_the_read_in_flight() {
    on_both_drivers(|| async {
        let (near, mut far) = pair();
        let near = Rc::new(near);
        let reads = Rc::new(RefCell::new(Vec::new()));
        let (ended, socket, seen) = (Rc::new(Signal::new()), near.clone(), reads.clone());
        let raised = ended.clone();
        runtime::spawn(async move {
            loop {
                let (result, bytes) = socket.read_link(BytesMut::with_capacity(64)).await;
                seen.borrow_mut().push(bytes);
                if !matches!(result, Ok(1..)) {
                    return raised.raise();
                }
            }
        });
        far.write_all(b"kept").unwrap();
        while reads.borrow().is_empty() {
            runtime::yield_now().await;
        }
        assert!(!ended.take(), "the second read waits");
        near.shutdown(Shutdown::Both);
        ended.wait().await;
        assert_eq!(reads.borrow()[0], &b"kept"[..]);
    });
}

#[test]
fn yields_are_fair_and_panics_are_contained() {
    on_both_drivers(|| async {
        let turns = Rc::new(Cell::new(0));
        for _ in 0..3 {
            let turns = turns.clone();
            runtime::spawn(async move {
                for _ in 0..10 {
                    turns.set(turns.get() + 1);
                    runtime::yield_now().await;
                }
            });
        }
        runtime::spawn(async { panic!("a planted defect") });
        struct Defect;
        impl Drop for Defect {
            fn drop(&mut self) {
                panic!("a planted defect of what is dropped");
            }
        }
        runtime::spawn(async {
            let _defect = Defect;
            runtime::yield_now().await;
        });
        for round in 1..=10 {
            runtime::yield_now().await;
            let passed = turns.get();
            assert!(
                passed >= 3 * (round - 1) && passed <= 3 * (round + 1),
                "{passed} turns after {round} rounds"
            );
        }
        // Dropped with the runtime.
        runtime::spawn(async {
            let _defect = Defect;
            runtime::sleep(Duration::from_secs(3_600)).await;
        });
        runtime::yield_now().await;
    });
}

#[test]
fn select_takes_the_first() {
    on_both_drivers(|| async {
        let signal = Signal::new();
        signal.raise();
        signal.raise();
        assert!(matches!(
            pair::select(signal.wait(), runtime::sleep(Duration::from_secs(60))).await,
            Either::Left(())
        ));
        let short = runtime::sleep(Duration::from_millis(1));
        assert!(
            matches!(pair::select(signal.wait(), short).await, Either::Right(())),
            "raised twice counts once"
        );
    });
}

#[test]
fn buffers_copy_small_reads_and_hand_over_big_ones() {
    on_both_drivers(|| async {
        let (near, mut far) = pair();
        let near = Transport::from(near);
        let buffers = Buffers::default();
        let mut frames = Vec::new();
        far.write_all(b"small").unwrap();
        near.readable().await.unwrap();
        assert_eq!(buffers.read(&near, 1 << 20, |f| frames.push(f)).unwrap(), 5);
        assert_eq!(&frames[0][FRAME_HEADER_BYTES..], b"small");
        assert!(frames[0].capacity() < 64, "a buffer of its own size");

        let big: Vec<u8> = (0..50_000_u32).map(|i| i as u8).collect();
        far.write_all(&big).unwrap();
        let mut read = Vec::new();
        while read.len() < big.len() {
            near.readable().await.unwrap();
            frames.clear();
            let limit = 40_000.min(big.len() - read.len());
            let n = buffers.read(&near, limit, |f| frames.push(f)).unwrap();
            assert!(n <= limit);
            frames
                .iter()
                .for_each(|f| read.extend_from_slice(&f[FRAME_HEADER_BYTES..]));
        }
        assert!(read == big);
        assert_eq!(
            buffers
                .read(&near, 1, |_| panic!("nothing is there"))
                .unwrap_err()
                .kind(),
            ErrorKind::WouldBlock
        );
    });
}

fn submit(ring: &mut IoUring, entry: &Entry) -> i32 {
    // SAFETY: the entries of these tests point at nothing.
    unsafe { ring.submission().push(entry) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    ring.completion().next().unwrap().result()
}

#[test]
fn a_restricted_ring_takes_the_list_and_nothing_else() {
    let mut ring = match ring::restricted(|flags| flags.build(8)) {
        Ok((ring, _)) => ring,
        Err(e) => return eprintln!("io_uring is refused here, nothing was tested: {e}"),
    };
    let mut free = IoUring::new(8).unwrap();
    let (nop, cancel) = (opcode::Nop::new().build(), opcode::AsyncCancel::new(7).build());
    let flagged = cancel.clone().flags(Flags::ASYNC);
    assert_eq!((submit(&mut free, &nop), submit(&mut ring, &nop)), (0, -libc::EACCES));
    assert_eq!(
        submit(&mut ring, &cancel),
        -libc::ENOENT,
        "allowed, and nothing to cancel"
    );
    assert_eq!(
        (submit(&mut free, &flagged), submit(&mut ring, &flagged)),
        (-libc::ENOENT, -libc::EACCES)
    );
    let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let register = |ring: &IoUring| ring.submitter().register_eventfd(bell.as_raw_fd());
    register(&free).unwrap();
    assert_eq!(register(&ring).unwrap_err().raw_os_error(), Some(libc::EACCES));
}

/// The same list holds for the ring of a runtime: monoio's file is opened by OPENAT, without a ring by a call.
#[test]
fn a_restricted_runtime_opens_no_file() {
    for (driver, refused) in [(Driver::Epoll, false), (Driver::IoUring, true)] {
        let Ok(runtime) = Runtime::new(driver) else {
            return eprintln!("io_uring is refused here, nothing was tested");
        };
        let opened = runtime.run(async { monoio::fs::File::open("/dev/null").await.map(drop) });
        assert_eq!(
            opened.err().and_then(|e| e.raw_os_error()),
            refused.then_some(libc::EACCES)
        );
    }
}

/// The runtime can be replaced, and what is not checked by the compiler can be read in one sitting.
#[test]
fn one_file_names_monoio_and_is_unsafe() {
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            seen += 1;
            if path.ends_with("shard/runtime.rs") {
                continue;
            }
            for (number, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let broken = code.contains("monoio") || code.contains("unsafe ");
                assert!(!broken, "{}:{}: {line}", path.display(), number + 1);
            }
        }
    }
    assert!(seen > 20);
}
