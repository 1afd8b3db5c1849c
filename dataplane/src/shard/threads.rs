//! Starting and ending the shards of a process: threads, mailboxes, descriptors.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Display;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::landings::Landings;
use super::mailbox::{Command, Event, Inbox, Outbox, mailbox};
use super::runtime::{Driver, Runtime};
use super::signal::Signal;
use super::waiting::Waiting;
use super::{Inner, Role, Services, Shard, run, timers};
use crate::bump::Bump;
use crate::cache::Cache;
use crate::error::Error;
use crate::limits::{COMMANDS_MAX, EVENTS_MAX, STOP_MAX, WAITING_HEADS_MAX};
use crate::mux::{Budget, BudgetConfig};
use crate::settings::Settings;
use crate::stats::{Counters, Report};
use crate::time::Time;

/// All shards of a process, as the control thread sees them.
pub(crate) struct Shards {
    outboxes: Vec<Outbox<Command>>,
    counters: Vec<Arc<Counters>>,
    events: Inbox<Event>,
    notes: Outbox<Event>,
    threads: Vec<JoinHandle<()>>,
    /// Each thread waits for one word before it runs.
    gate: Sender<()>,
    driver: Driver,
}

/// What each shard is started with.
pub(crate) struct Start {
    pub shards: usize,
    pub driver: Driver,
    /// One core each: for the host that does nothing else.
    pub pinned: bool,
    pub settings: Arc<Settings>,
    pub services: Services,
    /// The first mark of a shard's descriptors.
    pub connections_max: usize,
    /// A shard's share.
    pub budget: BudgetConfig,
    /// Since when an earlier process of this tunnel had lost its last link.
    pub dark_since: Option<Time>,
    /// Endpoint: shared by all shards.
    pub cache: Option<Arc<Cache>>,
    /// … and this.
    pub bump: Option<Arc<Bump>>,
}

impl Shards {
    /// Starts the threads and waits until each has its runtime; they do nothing before [`Shards::run`]. `role` is
    /// called on each thread, `begin` with its shard.
    pub fn start(
        start: &Start,
        mut browsers: Vec<OwnedFd>,
        role: impl Fn() -> Role + Send + Clone + 'static,
        begin: impl Fn(&Shard) + Send + Clone + 'static,
    ) -> Result<Self, Error> {
        let made = |e| Error::Io("making a mailbox", e);
        let (outbox, events) = mailbox(EVENTS_MAX).map_err(made)?;
        let mut outboxes = Vec::new();
        let mut inboxes = Vec::new();
        for _ in 0..start.shards {
            let (outbox, inbox) = mailbox(COMMANDS_MAX).map_err(made)?;
            outboxes.push(outbox);
            inboxes.push(inbox);
        }
        let counters: Vec<_> = (0..start.shards).map(|_| Arc::new(Counters::default())).collect();
        let undrained = Arc::new(AtomicUsize::new(start.shards));
        let (gate, opened) = bounded(start.shards);
        let mut shards = Self {
            outboxes,
            counters,
            events,
            notes: outbox.clone(),
            threads: Vec::new(),
            gate,
            driver: start.driver,
        };
        let (built, runtimes) = bounded(start.shards);
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let seed = Seed {
                index,
                driver: start.driver,
                gate: opened.clone(),
                core: start.pinned.then(|| core(index)).flatten(),
                settings: start.settings.clone(),
                services: start.services,
                budget: start.budget,
                dark_since: start.dark_since,
                cache: start.cache.clone(),
                bump: start.bump.clone(),
                counters: shards.counters.clone(),
                events: outbox.clone(),
                shards: shards.outboxes.clone(),
                browsers: (!browsers.is_empty()).then(|| browsers.remove(0)),
                undrained: undrained.clone(),
                connections_max: start.connections_max,
            };
            let (built, role, begin) = (built.clone(), role.clone(), begin.clone());
            let thread = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || live(seed, inbox, &built, role, begin))
                .map_err(|e| Error::Io("starting a shard's thread", e))?;
            shards.threads.push(thread);
        }
        drop(built);
        for _ in 0..start.shards {
            let driver = runtimes.recv().map_err(|_| Error::Closed("a shard"))?;
            shards.driver = driver.map_err(|e| Error::Io("starting a shard's runtime", e))?;
        }
        Ok(shards)
    }

    /// Opens the gate. No shard makes a thread, a ring or a runtime after it.
    pub fn run(&self) {
        for _ in &self.threads {
            // There is room for a word to each, and a thread that is gone has said why.
            let _ = self.gate.send(());
        }
    }

    pub fn driver(&self) -> Driver {
        self.driver
    }

    pub fn events(&self) -> &Receiver<Event> {
        self.events.queue()
    }

    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.events.bell()
    }

    pub fn report(&self) -> Report {
        Report::of(&self.counters)
    }

    /// Tells one shard. One that has let a thousand commands pile up is stuck, and the process is to end.
    pub fn tell(&self, shard: usize, command: Command) {
        if self.outboxes[shard].send(command).is_err() {
            self.note(Event::Failed(format!("shard {shard} takes no commands")));
        }
    }

    /// Tells every shard.
    pub fn tell_all(&self, command: impl Fn() -> Command) {
        self.tell_each(|_| command());
    }

    /// Tells every shard something of its own.
    pub fn tell_each(&self, command: impl Fn(usize) -> Command) {
        for shard in 0..self.outboxes.len() {
            self.tell(shard, command(shard));
        }
    }

    /// Tells the control thread what went wrong on its own side.
    pub fn note(&self, event: Event) {
        // With the queue full the thread does not listen, and there is nobody else to tell.
        let _ = self.notes.send(event);
    }

    pub fn count(&self) -> usize {
        self.outboxes.len()
    }

    /// Ends all links and waits for the threads.
    pub fn stop(self) {
        self.tell_all(|| Command::Stop);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn core(index: usize) -> Option<core_affinity::CoreId> {
    let cores = core_affinity::get_core_ids()?;
    cores.get(index % cores.len().max(1)).copied()
}

/// What a shard is made of, on its way to its thread.
struct Seed {
    index: usize,
    driver: Driver,
    gate: Receiver<()>,
    core: Option<core_affinity::CoreId>,
    settings: Arc<Settings>,
    services: Services,
    budget: BudgetConfig,
    dark_since: Option<Time>,
    cache: Option<Arc<Cache>>,
    bump: Option<Arc<Bump>>,
    counters: Vec<Arc<Counters>>,
    events: Outbox<Event>,
    shards: Vec<Outbox<Command>>,
    browsers: Option<OwnedFd>,
    undrained: Arc<AtomicUsize>,
    connections_max: usize,
}

fn live(
    seed: Seed,
    inbox: Inbox<Command>,
    built: &crossbeam::channel::Sender<std::io::Result<Driver>>,
    role: impl Fn() -> Role,
    begin: impl Fn(&Shard),
) {
    if let Some(core) = seed.core {
        core_affinity::set_for_current(core);
    }
    let runtime = match Runtime::new(seed.driver) {
        Ok(runtime) => runtime,
        Err(e) => return drop(built.send(Err(e))),
    };
    let _ = built.send(Ok(runtime.driver()));
    if seed.gate.recv().is_err() {
        return;
    }
    let (index, events) = (seed.index, seed.events.clone());
    let failed = |text: &dyn Display| {
        let _ = events.send(Event::Failed(format!("shard {index} ended: {text}")));
    };
    let ended = catch_unwind(AssertUnwindSafe(|| {
        runtime.run(async {
            let (shard, browsers) = seed.grow(role());
            begin(&shard);
            // Told at once: the end of all its tasks takes a while.
            run(shard, inbox, browsers).await.unwrap_or_else(|e| failed(&e));
        });
    }));
    ended.unwrap_or_else(|_| failed(&"a defect in this program"));
}

impl Seed {
    fn grow(self, role: Role) -> (Shard, Option<OwnedFd>) {
        let waiting = Waiting::new(WAITING_HEADS_MAX / self.shards.len());
        let landings = Landings::new(self.shards[self.index].clone());
        let shard = Shard(Rc::new(Inner {
            index: self.index,
            role,
            services: self.services,
            settings: RefCell::new(self.settings.own()),
            budget: RefCell::new(Budget::new(self.budget)),
            links: RefCell::default(),
            next_key: Cell::new(0),
            buffers: super::Buffers::default(),
            counters: self.counters[self.index].clone(),
            all_counters: self.counters,
            events: self.events,
            error_lines: super::ErrorLines::new(),
            shards: self.shards,
            waiting,
            seats: RefCell::default(),
            calling: Cell::new(false),
            dark_since: Cell::new(self.dark_since),
            was_live: Cell::new(self.dark_since.is_some()),
            next_turn: Cell::new(0),
            draining: Cell::new(false),
            left: Cell::new(false),
            drained: Signal::new(),
            undrained: self.undrained,
            handshakes: Cell::new(0),
            strangers: Rc::default(),
            connections_max: self.connections_max,
            pipes: RefCell::default(),
            dials: super::outside::Dials::default(),
            probes: RefCell::new(HashMap::new()),
            next_probe: Cell::new(0),
            browsers: RefCell::default(),
            cache: self.cache,
            bump: self.bump,
            landings,
            refreshes: Rc::default(),
            held: Cell::new(0),
        }));
        (shard, self.browsers)
    }
}

/// Tells the control thread when the last shard is drained.
pub(super) async fn announce_drained(shard: Shard) {
    shard.0.drained.wait().await;
    if shard.0.undrained.fetch_sub(1, Ordering::Relaxed) == 1 {
        shard.tell(Event::Drained);
    }
}

/// Ends every connection and waits until its last read is done: what a read brings that the runtime's end breaks off is lost.
pub(super) async fn end_links(shard: &Shard) {
    const ENDS: &str = "this side ends";
    let links = shard.0.links.borrow().clone();
    let ended = async {
        for link in links {
            // First: what is aborted is not told to have drained.
            link.abort(ENDS);
            link.retire(shard);
            while link.is_connected() {
                link.abort(ENDS);
                link.gone.wait().await;
            }
        }
    };
    timers::timeout(STOP_MAX, ended).await;
}

/// Raises the soft limit of descriptors to the hard one and returns it.
///
/// # Errors
/// The kernel refused, which it does to nobody.
pub(crate) fn raise_fd_limit() -> Result<u64, Error> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .map_err(|e| Error::Io("raising the limit of descriptors", e.into()))?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}
