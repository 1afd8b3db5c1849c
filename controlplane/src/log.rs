//! The log: lines from `tracing` through a bounded queue to one writing thread. A full or broken disk, or a reader that
//! stalls or leaves, costs lines, which are counted, never traffic. Panics are lines too. That of `sc` is a file, and
//! nothing of it ever goes to stdout or stderr; that of `sc-cloud` is its standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded};
use dataplane::limits::{LOG_FLUSH_MAX, LOG_LINE_BYTES_MAX, LOG_QUEUE_LINES_MAX, LOG_WRITE_BYTES_MAX};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::Place;

enum Message {
    Line(String),
    Stop(Sender<()>),
}

/// A started log. Dropping it writes what is still queued.
pub struct Log {
    queue: Sender<Message>,
}

impl Log {
    /// Opens the file for appending, readable by its owner only, and sends all `tracing` events of Culvert's own
    /// crates there: from info on, with `verbose` 1 from debug, from 2 everything. Other crates' events are left
    /// out, since some print what they send, credentials included.
    ///
    /// # Errors
    /// What the system says about the file; also if this process has a log already.
    pub fn start(place: &Place, verbose: u8) -> io::Result<Self> {
        let file = open(place)?;
        let level = match verbose {
            0 => "info",
            1 => "debug",
            _ => "trace",
        };
        let filter = EnvFilter::new(format!("off,controlplane={level},dataplane={level}"));
        Self::write_to(file, filter, verbose > 0)
    }

    /// Sends events from info on, or those that `RUST_LOG` names, to standard error.
    ///
    /// # Errors
    /// What the system says; also if this process has a log already.
    pub fn to_stderr() -> io::Result<Self> {
        // Not by std's handle: its lock would be held while a reader stalls.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        Self::write_to(stderr, filter, false)
    }

    fn write_to(file: File, filter: EnvFilter, target: bool) -> io::Result<Self> {
        let (queue, lines) = bounded(LOG_QUEUE_LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let sink = Sink {
            queue: queue.clone(),
            lost: lost.clone(),
        };
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_target(target)
            .with_env_filter(filter)
            .with_writer(sink)
            .finish();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(file, &lines, &lost))?;
        tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
        std::panic::set_hook(Box::new(|info| tracing::error!("{info}")));
        Ok(Self { queue })
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (done, finished) = bounded(1);
        let end = Instant::now() + LOG_FLUSH_MAX;
        if self.queue.send_deadline(Message::Stop(done), end).is_ok() {
            // A disk that hangs must not hold the exit; then the last lines are lost.
            let _ = finished.recv_deadline(end);
        }
    }
}

/// Non-blocking, so that a FIFO without a reader is an error and not a wait.
fn open(place: &Place) -> io::Result<File> {
    let nofollow = match place {
        Place::Named(_) => 0,
        Place::Temporary(_) => libc::O_NOFOLLOW,
    };
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nofollow | libc::O_NONBLOCK)
        .open(place.path())
}

#[derive(Clone)]
struct Sink {
    queue: Sender<Message>,
    lost: Arc<AtomicU64>,
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line;
    fn make_writer(&'a self) -> Line {
        Line {
            text: Vec::new(),
            sink: self.clone(),
        }
    }
}

/// One event on its way into the queue.
struct Line {
    text: Vec<u8>,
    sink: Sink,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = LOG_LINE_BYTES_MAX.saturating_sub(self.text.len());
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        let mut line = escape(text.trim_end_matches('\n'));
        line.push('\n');
        if self.sink.queue.try_send(Message::Line(line)).is_err() {
            self.sink.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Makes a text safe for a terminal and for one line: control characters become `\u{..}`.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

fn write_lines(mut file: impl Write, lines: &Receiver<Message>, lost: &AtomicU64) {
    while let Ok(first) = lines.recv() {
        let mut batch = String::new();
        let mut count = 0;
        let mut stop = None;
        let mut next = Some(first);
        while let Some(message) = next.take() {
            match message {
                Message::Line(line) => {
                    batch.push_str(&line);
                    count += 1;
                }
                Message::Stop(done) => {
                    stop = Some(done);
                    break;
                }
            }
            if batch.len() < LOG_WRITE_BYTES_MAX {
                next = lines.try_recv().ok();
            }
        }
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            batch.push_str(&format!("{missing} lines were lost before this one\n"));
        }
        if file.write_all(batch.as_bytes()).is_err() {
            lost.fetch_add(missing + count, Ordering::Relaxed);
        }
        if let Some(done) = stop {
            // Whoever asked may have given up waiting.
            let _ = done.send(());
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape("a\r\n\x1b[31mb\u{9b}\0é"), r"a\r\n\u{1b}[31mb\u{9b}\u{0}é");
    }

    #[test]
    fn a_file_is_private_and_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Temporary(folder.path().join("sc.log"));
        for _ in 0..2 {
            open(&place).unwrap().write_all(b"x").unwrap();
        }
        assert_eq!(std::fs::read(place.path()).unwrap(), b"xx");
        let mode = std::fs::metadata(place.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn planted_links_are_not_followed_and_fifos_do_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        symlink(&target, &link).unwrap();
        assert!(open(&Place::Temporary(link.clone())).is_err());
        assert!(!target.exists());
        assert!(open(&Place::Named(link)).is_ok());
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(open(&Place::Named(fifo)).is_err());
    }

    /// A disk that is full for its first write, and says when that has happened.
    struct Disk(Option<Sender<()>>, Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(full) = self.0.take() {
                full.send(()).unwrap();
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lost_lines_are_counted() {
        let (queue, lines) = bounded(4);
        let lost = Arc::new(AtomicU64::new(0));
        let written = Arc::default();
        let (full, was_full) = bounded(1);
        let disk = Disk(Some(full), Arc::clone(&written));
        let sink = Sink {
            queue: queue.clone(),
            lost: lost.clone(),
        };
        for text in ["a\n", "b\n", "c\n", "d\n", "too many\n"] {
            sink.make_writer().write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(lost.load(Ordering::Relaxed), 1);
        let thread = std::thread::spawn(move || write_lines(disk, &lines, &lost));
        was_full.recv().unwrap();
        let (done, finished) = bounded(1);
        queue.send(Message::Stop(done)).unwrap();
        finished.recv().unwrap();
        thread.join().unwrap();
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "5 lines were lost before this one\n");
    }
}
