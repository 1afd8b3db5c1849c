//! Stand-in: counters of a role.

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub requests: u64,
    pub streams_open: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub links_up: u16,
}
