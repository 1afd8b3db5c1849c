//! What an endpoint goes on doing under all of it.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use bytes::BytesMut;
use dataplane::shard::runtime::{self, Driver, Runtime, Socket};
use dataplane::shard::signal::Signal;
use dataplane::shard::{pair, timers};
use dataplane::tls::Identity;

use super::Deed;

/// The generator asks the kernel for more every few thousand draws.
const DRAWS: usize = 100_000;
const KEYS: usize = 1_000;
const SENT_BYTES: usize = 4_000_000;

pub fn prepare(name: &str) -> io::Result<Deed> {
    Ok(match name {
        "io_uring" => shard(Driver::IoUring)?,
        "epoll" => shard(Driver::Epoll)?,
        "draws" => {
            draw()?;
            Box::new(|| (0..DRAWS).try_for_each(|_| draw()))
        }
        "keys" => Box::new(|| (0..KEYS).try_for_each(|_| Identity::generate().map(drop).map_err(io::Error::other))),
        _ => return Err(io::Error::other("no such life")),
    })
}

fn draw() -> io::Result<()> {
    SystemRandom::new().fill(&mut [0; 32]).map_err(io::Error::other)
}

/// A shard's runtime carries bytes over sockets that were accepted before, after one of its tasks has panicked.
fn shard(driver: Driver) -> io::Result<Deed> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let far = TcpStream::connect(listener.local_addr()?)?;
    let (near, _) = listener.accept()?;
    let runtime = Runtime::new(driver)?;
    Ok(Box::new(move || {
        runtime.run(async move {
            let panicked = Rc::new(Signal::new());
            let raised = Raised(panicked.clone());
            runtime::spawn(async move {
                let _raised = raised;
                panic!("a planted defect");
            });
            panicked.wait().await;
            let (near, far) = (Socket::tcp(near.into())?, Socket::tcp(far.into())?);
            let send = async { near.write_link(vec![7; SENT_BYTES]).await.0 };
            pair::both(send, receive(&far)).await?;
            runtime::sleep(std::time::Duration::from_millis(1)).await;
            let dropped = timers::timeout(std::time::Duration::ZERO, far.readable()).await;
            match dropped {
                None => Ok(()),
                Some(_) => Err(io::Error::other("more bytes than were sent")),
            }
        })
    }))
}

async fn receive(socket: &Socket) -> io::Result<()> {
    let mut left = SENT_BYTES;
    while left > 0 {
        let (read, bytes) = socket.read_link(BytesMut::with_capacity(64 * 1024)).await;
        left -= read?;
        if bytes.is_empty() || bytes.iter().any(|&b| b != 7) {
            return Err(io::Error::other("other bytes arrived"));
        }
    }
    Ok(())
}

/// Says that its task has ended, by a panic too.
struct Raised(Rc<Signal>);

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.raise();
    }
}
