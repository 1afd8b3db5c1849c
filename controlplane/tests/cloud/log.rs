//! Who reads the cloud's standard error holds up nothing.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{CWD, FileType, mknodat};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::{Cloud, FINGERPRINT};

/// A cloud that logs into a pipe, and the ends of that which are ours.
struct Piped {
    cloud: Cloud,
    reader: File,
    writer: File,
    _folder: TempDir,
}

impl Piped {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("log");
        mknodat(CWD, &pipe, FileType::Fifo, 0o600.into(), 0).unwrap();
        let end = |options: &mut OpenOptions| {
            let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
            options.custom_flags(nonblocking).open(&pipe).unwrap()
        };
        let reader = end(OpenOptions::new().read(true));
        let writer = end(OpenOptions::new().write(true));
        let cloud = Cloud::start_on(tempfile::tempdir().unwrap(), &[], Some(pipe));
        Self {
            cloud,
            reader,
            writer,
            _folder: folder,
        }
    }

    /// Nothing more goes in before somebody reads.
    fn fill(&mut self) {
        let full = loop {
            if let Err(error) = self.writer.write(&[b'.'; 4_096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
    }

    /// A tunnel lives, which is said in the log more than once.
    fn is_served(&self) {
        let id = self.cloud.create(json!({"culvert": {"fingerprint": FINGERPRINT}}));
        self.cloud.running(&id);
        let deleted = self.cloud.call("DELETE", &format!("ada/tunnels/{id}"), None);
        assert_eq!(deleted.status, 200);
        self.cloud.terminated(&id);
    }

    fn ends(mut self) {
        self.cloud.signal(Signal::TERM);
        assert_eq!(self.cloud.exit_code(), Some(0));
    }
}

#[test]
fn f23_who_reads_its_log_may_stall() {
    let mut piped = Piped::start();
    piped.fill();
    piped.is_served();
    piped.is_served();
    piped.ends();
}

#[test]
fn f23_who_reads_its_log_may_leave() {
    let mut piped = Piped::start();
    piped.is_served();
    piped.reader = File::open("/dev/null").unwrap();
    piped.is_served();
    piped.is_served();
    piped.ends();
}
