//! The bytes that the cache holds, counted until they are really gone: a stored answer that was displaced, but is still
//! being sent, is still held.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How much may be held, and how much is.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    held: AtomicUsize,
}

impl Budget {
    /// `held`: what is never given back.
    pub fn new(limit: usize, held: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: AtomicUsize::new(held),
        })
    }

    /// Nothing if there is no room.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let grown = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.limit);
        // No other memory is ordered by this count.
        self.held.fetch_update(Relaxed, Relaxed, grown).ok()?;
        let mut charge = self.nothing();
        charge.bytes = bytes;
        Some(charge)
    }

    /// A charge of no bytes.
    pub fn nothing(self: &Arc<Self>) -> Charge {
        Charge {
            bytes: 0,
            budget: Arc::clone(self),
        }
    }

    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    bytes: usize,
    budget: Arc<Budget>,
}

impl Charge {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes another charge in.
    pub fn add(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Splits off at most so many bytes.
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self {
            bytes,
            budget: Arc::clone(&self.budget),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged_is_given_back_once() {
        let budget = Budget::new(100, 10);
        let mut first = budget.charge(60).unwrap();
        assert!(budget.charge(31).is_none());
        assert!(budget.charge(usize::MAX).is_none());
        first.add(budget.charge(30).unwrap());
        assert_eq!((first.bytes(), budget.held()), (90, 100));
        let rest = first.split(40);
        drop(first);
        assert_eq!((rest.bytes(), budget.held()), (40, 50));
        drop(rest);
        assert_eq!(budget.held(), 10);
    }
}
