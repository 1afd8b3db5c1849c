//! Which of a shard's local sockets can be read or written: one epoll set, edge-triggered, whose own descriptor is what
//! the runtime waits for. However many sockets stir, the runtime is woken once, and a socket that is waited for again
//! and again is made known to the kernel once; a wait by itself is a flag and a waker.
//!
//! The kernel says that something came, not that something is there: a socket counts as readable until a read has found
//! less than it asked for (epoll(7), "edge-triggered"), and as writable until a write was not taken whole.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};

use super::runtime::{self, Socket};
use crate::limits::{READY_EVENTS_MAX, READY_PAUSE, TURN_EXCHANGES_MAX, UNWAITED_MAX};

thread_local! {
    static SET: RefCell<Option<Rc<Set>>> = const { RefCell::new(None) };
}

/// Makes a set for [`keep`], which may run where none can be made any more.
///
/// # Errors
/// What epoll_create(2) said.
pub(super) fn make() -> io::Result<OwnedFd> {
    Ok(epoll::create(epoll::CreateFlags::CLOEXEC)?)
}

/// Makes the set this thread's, and tells its sockets what happens to them; ends with the runtime.
pub(super) async fn keep(epoll: OwnedFd) {
    // Without one, each wait is the runtime's own.
    let Ok(bell) = Socket::new(epoll) else { return };
    let set = Rc::new(Set {
        bell,
        states: RefCell::default(),
        free: RefCell::default(),
        sockets: Cell::new(0),
        events: RefCell::new(Vec::with_capacity(READY_EVENTS_MAX)),
        told: Cell::new(0),
    });
    SET.set(Some(set.clone()));
    let _ends = Ends;
    loop {
        if set.bell.readable().await.is_err() {
            // The kernel has no memory for it now; nobody else asks for these sockets.
            runtime::sleep(READY_PAUSE).await;
        }
        while set.collect() {
            runtime::yield_now().await;
        }
    }
}

struct Ends;

impl Drop for Ends {
    fn drop(&mut self) {
        SET.take();
    }
}

struct Set {
    bell: Socket,
    /// By place; one for each open socket.
    states: RefCell<Vec<Option<Rc<State>>>>,
    free: RefCell<Vec<u32>>,
    /// That were ever in it, modulo 2³².
    sockets: Cell<u32>,
    events: RefCell<Vec<Event>>,
    /// How many of them their sockets were told of.
    told: Cell<usize>,
}

impl Set {
    /// Takes what the kernel has, [`READY_EVENTS_MAX`] events at once, and wakes who waits for it until
    /// [`TURN_EXCHANGES_MAX`] sockets that carry HTTP have stirred. Says whether there may be more.
    fn collect(&self) -> bool {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let events = &mut *self.events.borrow_mut();
        let states = self.states.borrow();
        let stirred = |event: &Event| {
            let data = event.data.u64();
            let state = states.get(data as u32 as usize).and_then(Option::as_ref);
            // The place may have gone to another socket since.
            state.filter(|state| state.number == (data >> 32) as u32)
        };
        let mut told = self.told.take();
        if told == events.len() {
            events.clear();
            told = 0;
            let _ = epoll::wait(&self.bell, spare_capacity(events), Some(&AT_ONCE));
            // Of all at once: a connection of the pool is looked at by whoever has its turn first.
            for event in events.iter() {
                stirred(event).inspect(|state| state.note(event.flags));
            }
        }
        let mut exchanges = 0;
        while told < events.len() && exchanges < TURN_EXCHANGES_MAX {
            let event = &events[told];
            told += 1;
            if let Some(state) = stirred(event) {
                state.wake(event.flags);
                exchanges += usize::from(!state.relays.get());
            }
        }
        self.told.set(told);
        told < events.len() || told == READY_EVENTS_MAX
    }

    fn place(&self, state: &Rc<State>) -> u32 {
        let mut states = self.states.borrow_mut();
        match self.free.borrow_mut().pop() {
            Some(place) => {
                states[place as usize] = Some(state.clone());
                place
            }
            None => {
                states.push(Some(state.clone()));
                (states.len() - 1) as u32
            }
        }
    }

    fn give_back(&self, place: u32) {
        self.states.borrow_mut()[place as usize] = None;
        self.free.borrow_mut().push(place);
    }
}

/// What is known of a socket.
#[derive(Default)]
struct State {
    /// Which of the sockets that ever had this place.
    number: u32,
    readable: Cell<bool>,
    /// Waits for bytes in a row that did not wait.
    unwaited: Cell<u32>,
    full: Cell<bool>,
    /// An end or an error came: there is always something to read.
    ended: Cell<bool>,
    /// Carries opaque bytes.
    relays: Cell<bool>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
}

impl State {
    fn note(&self, flags: EventFlags) {
        if flags.intersects(ENDED) {
            self.ended.set(true);
        }
        if flags.intersects(READABLE) {
            self.readable.set(true);
        }
        if flags.intersects(WRITABLE) {
            self.full.set(false);
        }
    }

    /// Who finds it read or full meanwhile waits again.
    fn wake(&self, flags: EventFlags) {
        if flags.intersects(READABLE) {
            wake(&self.reader);
        }
        if flags.intersects(WRITABLE) {
            wake(&self.writer);
        }
    }
}

fn wake(waiter: &Cell<Option<Waker>>) {
    if let Some(waker) = waiter.take() {
        waker.wake();
    }
}

/// A socket's place in the set of its shard.
pub(super) struct Watch {
    set: Rc<Set>,
    place: u32,
    state: Rc<State>,
    /// The kernel tells of room too: for most sockets there always is.
    tells_room: Cell<bool>,
}

impl Watch {
    /// None where there is no set, or the kernel does not take the socket.
    pub fn new(socket: &impl AsFd) -> Option<Self> {
        let set = SET.with_borrow(Clone::clone)?;
        let number = set.sockets.get().wrapping_add(1);
        set.sockets.set(number);
        let state = Rc::new(State {
            number,
            ..State::default()
        });
        let watch = Self {
            place: set.place(&state),
            set,
            state,
            tells_room: Cell::new(false),
        };
        epoll::add(&watch.set.bell, socket, watch.data(), FLAGS).ok()?;
        Some(watch)
    }

    fn data(&self) -> EventData {
        EventData::new_u64(u64::from(self.state.number) << 32 | u64::from(self.place))
    }

    pub fn is_readable(&self) -> bool {
        self.state.readable.get()
    }

    /// Whether it carries opaque bytes from now on, which cost little beside HTTP.
    pub fn set_relay(&self, relays: bool) {
        self.state.relays.set(relays);
    }

    /// May be dropped. Who always has something to read lets the others have their turn now and then.
    pub async fn readable(&self) {
        let state = &*self.state;
        let unwaited = if state.readable.get() {
            state.unwaited.get() + 1
        } else {
            0
        };
        state.unwaited.set(unwaited % UNWAITED_MAX);
        if unwaited == UNWAITED_MAX {
            runtime::yield_now().await;
        }
        Wait {
            state,
            waiter: &state.reader,
            is_ready: |state| state.readable.get(),
        }
        .await;
    }

    /// May be dropped.
    pub fn writable(&self) -> impl Future<Output = ()> {
        Wait {
            state: &self.state,
            waiter: &self.state.writer,
            is_ready: |state| !state.full.get(),
        }
    }

    /// A read of at most `asked` bytes was tried. Less than that was all there is, but for an end that may stand behind
    /// it.
    pub fn was_read(&self, read: &io::Result<usize>, asked: usize) {
        let drained = match read {
            Ok(read) => *read < asked && !self.state.ended.get(),
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        };
        if drained {
            self.state.readable.set(false);
        }
    }

    /// A write was not taken whole.
    pub fn was_full(&self, socket: &impl AsFd) {
        self.state.full.set(true);
        if !self.tells_room.replace(true) {
            // The kernel looks at once: room that came meanwhile is told of. It refuses only what is not in the set.
            let _ = epoll::modify(&self.set.bell, socket, self.data(), FLAGS | EventFlags::OUT);
        }
    }
}

impl Drop for Watch {
    /// The socket leaves the set as it is closed.
    fn drop(&mut self) {
        self.set.give_back(self.place);
    }
}

const FLAGS: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);
const ENDED: EventFlags = EventFlags::RDHUP.union(EventFlags::HUP).union(EventFlags::ERR);
const READABLE: EventFlags = ENDED.union(EventFlags::IN);
const WRITABLE: EventFlags = EventFlags::OUT.union(EventFlags::HUP).union(EventFlags::ERR);

struct Wait<'a> {
    state: &'a State,
    waiter: &'a Cell<Option<Waker>>,
    is_ready: fn(&State) -> bool,
}

impl Future for Wait<'_> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if (self.is_ready)(self.state) {
            return Poll::Ready(());
        }
        let waits = self.waiter.take().filter(|waits| waits.will_wake(cx.waker()));
        self.waiter.set(Some(waits.unwrap_or_else(|| cx.waker().clone())));
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    /// Forgets the waiter: it would keep the memory of its task.
    fn drop(&mut self) {
        self.waiter.take();
    }
}
