//! What processes hold, and that they give it back after a load or a fault.

use std::time::{Duration, Instant};

use crate::cloud::fault_lasts;
use crate::process::{anonymous_bytes, descriptors, open_fds, ring_operations};

/// After the last request.
const REST: Duration = Duration::from_secs(20);
/// What is just closing, and connections between the parts that come and go by their own clocks.
const FDS_SLACK: usize = 8;
/// What allocators and windows may keep of a load.
const MEMORY_SLACK_BYTES: u64 = 48 << 20;
/// Operations that were just between two when the process had just started.
const OPERATIONS_SLACK: usize = 4;

#[derive(Clone, Copy, Debug)]
struct Use {
    fds: usize,
    memory_bytes: u64,
    ring_operations: usize,
}

impl Use {
    fn of(process: u32) -> Self {
        Self {
            fds: open_fds(process),
            memory_bytes: anonymous_bytes(process),
            ring_operations: ring_operations(process),
        }
    }

    fn is_back(self, before: Self) -> bool {
        self.fds <= before.fds + FDS_SLACK
            && self.memory_bytes <= before.memory_bytes + MEMORY_SLACK_BYTES
            && self.ring_operations <= before.ring_operations + FDS_SLACK + OPERATIONS_SLACK
    }
}

struct Watched {
    name: String,
    process: u32,
    before: Use,
}

/// Processes, and what each held when the watch began.
#[derive(Default)]
pub struct Watch(Vec<Watched>);

impl Watch {
    /// What it holds now is what it must hold in the end.
    pub fn add(&mut self, name: &str, process: u32) {
        self.0.push(Watched {
            name: name.to_owned(),
            process,
            before: Use::of(process),
        });
    }

    /// Another process has taken the place of the one of this name, and must hold no more than that one did.
    pub fn replace(&mut self, name: &str, process: u32) {
        self.watched(name).process = process;
    }

    fn watched(&mut self, name: &str) -> &mut Watched {
        let watched = self.0.iter_mut().find(|w| w.name == name);
        watched.unwrap_or_else(|| panic!("nobody watches {name}"))
    }

    /// Waits until each process holds what it held before.
    pub fn end(&self) {
        self.end_in_use(|| ());
    }

    /// The same, and `use_them` again and again: an allocator gives back while it is used.
    pub fn end_in_use(&self, use_them: impl Fn()) {
        let since = Instant::now();
        loop {
            let now: Vec<_> = self.0.iter().map(|w| (w, Use::of(w.process))).collect();
            let more = now.iter().find(|(watched, now)| !now.is_back(watched.before));
            let Some((Watched { name, before, process }, now)) = more else {
                return;
            };
            assert!(
                since.elapsed() < REST,
                "{name} holds {now:?}, before: {before:?}\n{:?}",
                descriptors(*process)
            );
            use_them();
            fault_lasts(Duration::from_millis(100));
        }
    }
}
