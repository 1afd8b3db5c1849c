//! Which frame leaves next.
