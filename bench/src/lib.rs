//! Measures Culvert: its parts and its core in memory, and the real programs beside others under the same load.

pub mod compare;
pub mod core;
pub mod heads;
pub mod page;
pub mod records;
pub mod suite;
