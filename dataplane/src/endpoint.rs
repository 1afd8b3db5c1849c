//! Stand-in: names shared by both roles.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Auto,
    IoUring,
    Epoll,
}

#[derive(Clone, Debug)]
pub enum Event {
    LinkUp {
        member: [u8; 16],
        link: u16,
    },
    LinkDown {
        member: [u8; 16],
        link: u16,
        reason: String,
    },
    Log {
        level: u8,
        text: String,
    },
    Drained,
    Failed(String),
}
