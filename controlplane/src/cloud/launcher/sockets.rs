//! Fresh sockets between broker and endpoint.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::cloud::broker::ShardSender;
use crate::cloud::seqpacket::{self, Seqpacket};

/// The broker's end of each.
pub struct Sockets {
    pub control: Arc<Seqpacket>,
    pub shards: Vec<ShardSender>,
    pub theirs: Ends,
}

/// The endpoint's end of each.
pub struct Ends {
    pub control: OwnedFd,
    pub browsers: Vec<OwnedFd>,
}

impl Sockets {
    /// # Errors
    /// What the system says, usually that descriptors have run out.
    pub fn new(shards: usize) -> io::Result<Self> {
        let (own, control) = seqpacket::pair()?;
        let pairs: Result<Vec<_>, _> = (0..shards).map(|_| ShardSender::pair(shards)).collect();
        let (shards, browsers) = pairs?.into_iter().unzip();
        Ok(Self {
            control: Arc::new(Seqpacket::new(own)?),
            shards,
            theirs: Ends { control, browsers },
        })
    }
}
