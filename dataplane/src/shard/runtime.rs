//! The runtime of a shard, and the only file that names monoio, so that it can be replaced.
//!
//! One io_uring (flags `DEFER_TASKRUN | SINGLE_ISSUER` where the kernel has them) or, where io_uring is refused or
//! epoll was asked for, monoio's epoll driver; everything above works the same on both.
//!
//! Two ways to do I/O, and no third:
//!
//! - *Local sockets* (browsers, sites) wait for readiness ([`Socket::readable`], [`Socket::writable`]), through a set that
//!   the ring watches for all of them (`readiness.rs`) or, where it happens seldom, through the ring itself, and then call
//!   `readv(2)`/`writev(2)` themselves. A wait may be dropped: it holds no buffer and loses no byte, so it may stand in
//!   `select` (`pair.rs`) and `timeout` (`timers.rs`). At most one task waits for each direction of a socket.
//! - *Links* hand a buffer to the ring ([`Socket::read_link`], [`Socket::write_link`]). These must be awaited to their end:
//!   a dropped read that had completed loses its bytes. To stop one, shut the socket down and await it.
//!
//! Writes use WRITEV and never SEND, which would take an address: a ring must not be able to send to one. It
//! can do nothing else than what stands here (`ring.rs`).
//!
//! monoio stays sound under these rules: no `BufReader`/`BufWriter`, no listeners, no foreign wakers (threads talk by
//! eventfd), no runtime dropped under its tasks or while a link's read or write is in flight (`tasks.rs`), [`yield_now`]
//! by a helper task. One read is always in flight, that of monoio's own eventfd; it leaks the 8 bytes that it reads into,
//! which whoever takes another version of it must see again.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::mem::ManuallyDrop;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use io_uring::register::Restriction;
use monoio::buf::{IoBufMut, IoVecBuf};
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::UnixStream;
use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use super::readiness::{self, Watch};
use super::ring;
use super::signal::Signal;
use super::tasks::{self, Operation, Task};
use crate::limits::TURNS_MAX;
use crate::time::Time;

/// Which kernel interface a shard waits on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// io_uring, else epoll.
    #[default]
    Auto,
    IoUring,
    Epoll,
}

/// A runtime that was built and not yet run; stays on its thread.
pub struct Runtime {
    built: Built,
    /// See [`readiness`].
    set: OwnedFd,
}

enum Built {
    IoUring {
        runtime: monoio::Runtime<TimeDriver<IoUringDriver>>,
        /// See [`DEFERS`].
        defers: Option<RawFd>,
    },
    Epoll(monoio::Runtime<TimeDriver<LegacyDriver>>),
}

impl Runtime {
    /// Builds the runtime of the current thread. A ring does nothing but what this file asks of it; on a kernel that
    /// cannot restrict one there is none.
    ///
    /// # Errors
    /// The kernel refused io_uring while nothing else was allowed, or epoll.
    pub fn new(driver: Driver) -> io::Result<Self> {
        let built = match driver {
            Driver::Epoll => epoll()?,
            Driver::IoUring => io_uring()?,
            Driver::Auto => io_uring().or_else(|_| epoll())?,
        };
        let set = readiness::make()?;
        Ok(Self { built, set })
    }

    /// The driver in use: never `Auto`.
    pub fn driver(&self) -> Driver {
        match self.built {
            Built::IoUring { .. } => Driver::IoUring,
            Built::Epoll(_) => Driver::Epoll,
        }
    }

    /// Runs `main` to its end, which is the end of all tasks that it has started. Links that shall lose nothing have
    /// ended before.
    pub fn run<F: Future>(self, main: F) -> F::Output {
        let Self { built, set } = self;
        // If something is left under way, or `main` panics, what the runtime holds goes with the process.
        let mut built = ManuallyDrop::new(built);
        let main = async {
            spawn(pass_turns());
            spawn(readiness::keep(set));
            // The set is there before anything that goes by it.
            yield_now().await;
            let output = main.await;
            (output, tasks::end().await)
        };
        let (output, rests) = match &mut *built {
            Built::IoUring { runtime, defers } => {
                DEFERS.set(*defers);
                runtime.block_on(main)
            }
            Built::Epoll(r) => r.block_on(main),
        };
        DEFERS.set(None);
        if rests {
            drop(ManuallyDrop::into_inner(built));
        }
        output
    }
}

fn io_uring() -> io::Result<Built> {
    let build = |flags| {
        RuntimeBuilder::<IoUringDriver>::new()
            .uring_builder(flags)
            .enable_timer()
            .build()
    };
    let (runtime, defers) = ring::restricted(build)?;
    Ok(Built::IoUring { runtime, defers })
}

/// `IORING_REGISTER_RESTRICTIONS` on whatever `fd` is: only a ring that is still disabled takes them.
pub(super) fn restrict_ring(fd: RawFd, restrictions: &[Restriction]) -> io::Result<()> {
    const REGISTER_RESTRICTIONS: u32 = 11;
    // SAFETY: the kernel reads as many entries of 16 bytes as the slice has, and writes nothing.
    unsafe {
        register(
            fd,
            REGISTER_RESTRICTIONS,
            restrictions.as_ptr().cast(),
            restrictions.len(),
        )
    }
}

/// `IORING_REGISTER_ENABLE_RINGS`, on the thread that will submit to the ring.
pub(super) fn enable_ring(fd: RawFd) -> io::Result<()> {
    const REGISTER_ENABLE_RINGS: u32 = 12;
    // SAFETY: the operation takes no argument.
    unsafe { register(fd, REGISTER_ENABLE_RINGS, std::ptr::null(), 0) }
}

/// Has the kernel hand over what has completed. It does so by itself whenever a shard waits, but a shard whose tasks keep
/// waking each other never does.
fn collect(ring: RawFd) {
    const GETEVENTS: libc::c_uint = 1;
    // SAFETY: nothing is submitted, waited for or passed. What the kernel says is of no use: the next wait hears it too.
    unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring,
            0,
            0,
            GETEVENTS,
            std::ptr::null::<libc::sigset_t>(),
            0,
        )
    };
}

/// # Safety
/// `argument` and `count` are what the kernel expects of this operation.
unsafe fn register(fd: RawFd, operation: u32, argument: *const libc::c_void, count: usize) -> io::Result<()> {
    // SAFETY: promised by the caller.
    match unsafe { libc::syscall(libc::SYS_io_uring_register, fd, operation, argument, count) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn epoll() -> io::Result<Built> {
    RuntimeBuilder::<LegacyDriver>::new()
        .enable_timer()
        .build()
        .map(Built::Epoll)
}

/// Starts a task on this shard. A panic ends the task and nothing else.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    drop(monoio::spawn(Timed(Task::new(future))));
}

/// A task that sees the clock stand still, and the ring emptied however long it and others keep waking each other.
struct Timed(Task);

impl Future for Timed {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(ring) = DEFERS.get() {
            let polls = POLLS.get().wrapping_add(1);
            POLLS.set(polls);
            if polls.is_multiple_of(TURNS_MAX) {
                collect(ring);
            }
        }
        CLOCK.set(Clock::Unread);
        let polled = Pin::new(&mut self.0).poll(cx);
        CLOCK.set(Clock::NoTask);
        polled
    }
}

#[derive(Clone, Copy)]
enum Clock {
    NoTask,
    Unread,
    Read(Time),
}

thread_local! {
    /// This thread's ring, if completions wait in the kernel until they are asked for.
    static DEFERS: Cell<Option<RawFd>> = const { Cell::new(None) };
    static POLLS: Cell<u32> = const { Cell::new(0) };
    static CLOCK: Cell<Clock> = const { Cell::new(Clock::NoTask) };
}

/// What time it is. A task that runs sees the clock stand still until it waits: reading it a dozen times a request is a
/// few per cent of what the request costs.
pub fn now() -> Time {
    match CLOCK.get() {
        Clock::Read(time) => time,
        Clock::NoTask => Time::now(),
        Clock::Unread => {
            let time = Time::now();
            CLOCK.set(Clock::Read(time));
            time
        }
    }
}

/// A timer. Boxed: monoio's has 640 bytes, aligned to 128, and would make every task that ever waits as large.
/// For the task that polls it first: monoio's wakes no other (`timers::Alarm` does).
pub struct Sleep(Pin<Box<monoio::time::Sleep>>);

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

/// Waits for a length of time (the clock does not count suspended time; deadlines are checked against [`Time`]).
pub fn sleep(time: Duration) -> Sleep {
    Sleep(Box::pin(monoio::time::sleep(time)))
}

/// Waits until a moment; at once if it has passed.
pub async fn sleep_until(moment: Time) {
    let now = now();
    if moment > now {
        sleep(moment.since(now)).await;
    }
}

thread_local! {
    static YIELDED: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
    static TURN: Signal = const { Signal::new() };
}

/// Lets every task that is ready now run first. By way of a helper task: monoio puts a task that wakes itself
/// at the head of its queue, where it would starve the others.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        YIELDED.with_borrow_mut(|y| y.push(cx.waker().clone()));
        TURN.with(Signal::raise);
        Poll::Pending
    })
    .await;
}

async fn pass_turns() {
    loop {
        poll_fn(|cx| TURN.with(|t| t.poll(cx))).await;
        for waker in YIELDED.take() {
            waker.wake();
        }
    }
}

/// A socket (or an eventfd) of this shard. Closed when dropped, once what is in flight has ended.
pub struct Socket {
    /// The cell is for links alone: monoio's reads and writes ask for `&mut`, and a link has one of each in flight.
    inner: Rc<UnsafeCell<UnixStream>>,
    watch: Option<Watch>,
}

/// Buffers that one [`Socket::try_read`] fills.
pub const READ_BUFFERS_MAX: usize = 4;

impl Socket {
    /// Takes a descriptor of any kind that can be polled. Sets O_NONBLOCK, which the epoll driver lives on.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // monoio's Unix stream is its plainest wrapper of a descriptor: it looks at nothing of the socket.
        let inner = UnixStream::from_std(fd.into())?;
        Ok(Self {
            inner: Rc::new(UnsafeCell::new(inner)),
            watch: None,
        })
    }

    /// As [`Socket::new`], with TCP_NODELAY.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn tcp(fd: OwnedFd) -> io::Result<Self> {
        rustix::net::sockopt::set_tcp_nodelay(&fd, true)?;
        Self::new(fd)
    }

    /// Connects to an address. May be dropped, which closes the socket.
    ///
    /// # Errors
    /// What the kernel said, refused and unreachable included.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM.nonblocking().cloexec(),
            Some(socket2::Protocol::TCP),
        )?;
        match socket.connect(&address.into()) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
            _ => {}
        }
        let socket = Self::tcp(socket.into())?;
        socket.writable().await?;
        rustix::net::sockopt::socket_error(&socket)??;
        Ok(socket)
    }

    fn inner(&self) -> &UnixStream {
        // SAFETY: `&mut` to the cell exists only inside `read_link` and `write_link` while an operation is made; it
        // is not held over anything that calls back here.
        unsafe { &*self.inner.get() }
    }

    /// From now on waits go by the shard's set of sockets, for those that are waited for often.
    pub fn watched(mut self) -> Self {
        self.watch = Watch::new(&self);
        self
    }

    /// Whether it carries opaque bytes from now on: many such are served in one turn.
    pub fn set_relay(&self, relays: bool) {
        if let Some(watch) = &self.watch {
            watch.set_relay(relays);
        }
    }

    /// Waits until a read would not block (bytes, end or error); now and then it returns too early. May be dropped.
    ///
    /// # Errors
    /// The wait itself failed; errors of the socket are found by the read.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.watch {
            Some(watch) => watch.readable().await,
            None => Box::pin(self.inner().readable(false)).await?,
        }
        Ok(())
    }

    /// Whether there may be something to read (bytes, end or error), as far as the kernel has told.
    pub fn has_input(&self) -> bool {
        self.watch.as_ref().is_none_or(Watch::is_readable)
    }

    /// Waits until a write would not block; now and then it returns too early. May be dropped.
    ///
    /// # Errors
    /// The wait itself failed; errors of the socket are found by the write.
    pub async fn writable(&self) -> io::Result<()> {
        match &self.watch {
            Some(watch) => watch.writable().await,
            None => Box::pin(self.inner().writable(false)).await?,
        }
        Ok(())
    }

    /// Reads at most `limit` bytes into the spare capacity of at most [`READ_BUFFERS_MAX`] buffers, in order, without
    /// waiting; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock`: wait for [`Socket::readable`]. Anything else ends the socket.
    pub fn try_read(&self, buffers: &mut [BytesMut], limit: usize) -> io::Result<usize> {
        let (mut left, mut asked) = (limit, 0);
        let mut slices = [EMPTY; READ_BUFFERS_MAX];
        for (slice, buffer) in slices.iter_mut().zip(buffers.iter_mut()) {
            let spare = buffer.spare_capacity_mut();
            *slice = libc::iovec {
                iov_base: spare.as_mut_ptr().cast(),
                iov_len: spare.len().min(left),
            };
            left -= slice.iov_len;
            asked += slice.iov_len;
        }
        let count = buffers.len().min(READ_BUFFERS_MAX);
        let read = loop {
            // SAFETY: each of the first `count` slices is spare capacity of a buffer borrowed until the call has
            // returned; the kernel writes there and nowhere else.
            let read = unsafe { libc::readv(self.inner().as_raw_fd(), slices.as_ptr(), count as i32) };
            match usize::try_from(read) {
                Ok(read) => break Ok(read),
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => break Err(e),
                },
            }
        };
        if let Some(watch) = &self.watch {
            watch.was_read(&read, asked);
        }
        let read = read?;
        left = read;
        for (slice, buffer) in slices.iter().zip(buffers.iter_mut()) {
            let filled = left.min(slice.iov_len);
            // SAFETY: the kernel filled `filled` bytes from the old length on, all within the capacity.
            unsafe { buffer.set_len(buffer.len() + filled) };
            left -= filled;
        }
        Ok(read)
    }

    /// Writes without waiting what the kernel takes, from the slices in order.
    ///
    /// # Errors
    /// `WouldBlock`: wait for [`Socket::writable`]. Anything else ends the socket.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match rustix::io::writev(self, slices) {
                Err(rustix::io::Errno::INTR) => {}
                written => {
                    if let Some(watch) = &self.watch
                        && written.unwrap_or(0) < slices.iter().map(|slice| slice.len()).sum()
                    {
                        watch.was_full(self);
                    }
                    return Ok(written?);
                }
            }
        }
    }

    /// Writes all of `bytes`. If it is dropped halfway the socket is good for nothing more.
    ///
    /// # Errors
    /// The peer is gone, or what else the kernel said.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(&[IoSlice::new(bytes)]) {
                Ok(written) => bytes = &bytes[written..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Ends one or both directions. A link's read in flight completes.
    pub fn shutdown(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        // Fails only where the peer has ended the connection already.
        let _ = rustix::net::shutdown(self, how);
    }

    /// Address of the other side; `None` if it is gone already or not TCP.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        rustix::net::getpeername(self).ok()??.try_into().ok()
    }

    /// Own address; `None` if not TCP.
    pub fn local_address(&self) -> Option<SocketAddr> {
        rustix::net::getsockname(self).ok()?.try_into().ok()
    }

    /// Links only: appends to `buffer` up to its capacity; 0 is the end. One at a time, and to be awaited to its end.
    pub async fn read_link(&self, buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        let mut incoming = Incoming {
            bytes: buffer,
            _operation: Operation::begin(),
        };
        loop {
            // SAFETY: making the operation is all that happens under this `&mut`; its future works on a counted
            // reference to the descriptor.
            let read = unsafe { &mut *self.inner.get() }.read(incoming);
            let (result, returned) = read.await;
            incoming = returned;
            match result {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(e) = self.readable().await {
                        return (Err(e), incoming.bytes);
                    }
                }
                result => return (result, incoming.bytes),
            }
        }
    }

    /// Links only: writes all of `bytes` and gives the buffer back, empty. One at a time, and to be awaited to its end.
    pub async fn write_link(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let mut out = Outgoing::new(bytes);
        while out.slice.iov_len > 0 {
            // SAFETY: as in `read_link`.
            let write = unsafe { &mut *self.inner.get() }.writev(out);
            let (result, returned) = write.await;
            out = returned;
            match result {
                Ok(written) => out.advance(written),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(e) = self.writable().await {
                        return (Err(e), out.bytes);
                    }
                }
                Err(e) => return (Err(e), out.bytes),
            }
        }
        out.bytes.clear();
        (Ok(()), out.bytes)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream owns the descriptor and outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.inner().as_raw_fd()) }
    }
}

const EMPTY: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Where bytes of a link arrive: behind those that are there.
struct Incoming {
    bytes: BytesMut,
    _operation: Operation,
}

// SAFETY: the pointer and the length are those of the spare capacity, whose allocation neither moves nor changes while
// the runtime owns the value; `set_init` counts what has been written there.
unsafe impl IoBufMut for Incoming {
    fn write_ptr(&mut self) -> *mut u8 {
        self.bytes.spare_capacity_mut().as_mut_ptr().cast()
    }

    fn bytes_total(&mut self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    unsafe fn set_init(&mut self, count: usize) {
        let length = self.bytes.len() + count;
        // SAFETY: promised by the caller: the kernel wrote `count` bytes.
        unsafe { self.bytes.set_len(length) };
    }
}

/// Bytes of a link on their way, with the slice that the kernel reads them by.
struct Outgoing {
    bytes: Vec<u8>,
    /// What is still to be written: boxed, so that it stays in place while the operation moves.
    slice: Box<libc::iovec>,
    _operation: Operation,
}

impl Outgoing {
    fn new(mut bytes: Vec<u8>) -> Self {
        let slice = Box::new(libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        });
        Self {
            bytes,
            slice,
            _operation: Operation::begin(),
        }
    }

    fn advance(&mut self, written: usize) {
        self.slice.iov_base = self.slice.iov_base.wrapping_byte_add(written);
        self.slice.iov_len -= written;
    }
}

// SAFETY: the slice is boxed and points into `bytes`, whose allocation neither moves nor changes while the runtime
// owns the value; `advance` keeps it within.
unsafe impl IoVecBuf for Outgoing {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        &raw const *self.slice
    }

    fn read_iovec_len(&self) -> usize {
        1
    }
}
