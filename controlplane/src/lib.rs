//! Culvert's control plane: command lines, REST, the life of tunnels. It decides, and never touches a payload byte.

pub mod allocator;
pub mod api;
pub mod cli;
pub mod client;
pub mod cloud;
pub mod config;
pub mod duration;
pub mod log;
pub mod runtime;
pub mod secret;
