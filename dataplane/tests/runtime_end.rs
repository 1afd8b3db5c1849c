//! A runtime that has ended leaves nothing behind, whatever its tasks waited for. The only test of its process: it counts
//! the process's descriptors.

use std::cell::Cell;
use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use dataplane::shard::runtime::{self, Driver, Runtime, Socket};
use dataplane::shard::signal::Signal;
use dataplane::shard::timers::Alarm;
use dataplane::time::Time;

/// More than the kernel takes for a peer that reads nothing.
const BULK_BYTES: usize = 32 << 20;
const FOREVER: Duration = Duration::from_secs(3_600);
/// The kernel lets go of a ring on a thread of its own.
const PATIENCE: Duration = Duration::from_secs(10);

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    (Socket::tcp(near.into()).unwrap(), far)
}

/// Counts the tasks that were not let go.
struct Alive(Rc<Cell<usize>>);

impl Alive {
    fn of(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Starts a task for each thing that can be waited for, and returns the other ends of their sockets.
fn wait_for_everything(alive: &Rc<Cell<usize>>) -> Vec<TcpStream> {
    let mut far = Vec::new();
    let mut start = |task: fn(Socket) -> std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        let (near, end) = pair();
        far.push(end);
        let (task, alive) = (task(near), Alive::of(alive));
        runtime::spawn(async move {
            let _alive = alive;
            task.await;
        });
    };
    start(|socket| Box::pin(async move { socket.readable().await.unwrap() }));
    start(|socket| Box::pin(async move { socket.watched().readable().await.unwrap() }));
    start(|socket| Box::pin(async move { drop(socket.read_link(BytesMut::with_capacity(64)).await) }));
    start(|socket| Box::pin(async move { drop(socket.write_link(vec![7; BULK_BYTES]).await) }));
    start(|_socket| Box::pin(runtime::sleep(FOREVER)));
    start(|_socket| Box::pin(async { Alarm::default().until(Time::now() + FOREVER).await }));
    start(|_socket| Box::pin(async { Signal::new().wait().await }));
    start(|socket| {
        Box::pin(async move {
            let (alive, socket) = (Rc::new(Cell::new(0)), Rc::new(socket));
            // One that begins as everything ends.
            struct Begins(Rc<Socket>, Rc<Cell<usize>>);
            impl Drop for Begins {
                fn drop(&mut self) {
                    let (socket, alive) = (self.0.clone(), Alive::of(&self.1));
                    runtime::spawn(async move {
                        let _alive = alive;
                        socket.readable().await.unwrap();
                    });
                }
            }
            let _begins = Begins(socket.clone(), alive);
            socket.readable().await.unwrap();
        })
    });
    far
}

#[test]
fn an_ended_runtime_leaves_nothing() {
    let mut drivers = vec![Driver::Epoll];
    match Runtime::new(Driver::IoUring) {
        Ok(runtime) => {
            runtime.run(async {});
            drivers.push(Driver::IoUring);
        }
        Err(e) => eprintln!("io_uring is refused here, only epoll was tested: {e}"),
    }
    let before = descriptors();
    for driver in drivers {
        for _ in 0..3 {
            let alive = Rc::new(Cell::new(0));
            let runtime = Runtime::new(driver).unwrap();
            let far = runtime.run(async {
                let far = wait_for_everything(&alive);
                // Until all of them wait.
                runtime::sleep(Duration::from_millis(20)).await;
                assert_eq!(alive.get(), far.len(), "one has not waited");
                far
            });
            assert_eq!(alive.get(), 0, "{driver:?}: tasks are left");
            for mut end in far {
                end.set_read_timeout(Some(PATIENCE)).unwrap();
                // Whatever was under way is read to its end, which is that of a socket that nobody holds.
                let mut rest = Vec::new();
                let _ = end
                    .read_to_end(&mut rest)
                    .map_err(|e| assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset));
            }
            let begun = Instant::now();
            while descriptors() > before {
                assert!(
                    begun.elapsed() < PATIENCE,
                    "{driver:?}: {} descriptors are left",
                    descriptors() - before
                );
                std::thread::yield_now();
            }
        }
    }
}
