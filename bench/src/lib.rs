//! Measures Culvert: the sans-IO core in memory, and the real programs beside others under the same load.

pub mod compare;
pub mod core;
