//! The pid file and the ready file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, FlockOperation};

use super::Failure;
use crate::config::Place;

/// A pid file of this process: locked while it lives, removed when dropped. The lock, not the number in it, says
/// whether another `sc` uses it, so that a file left by a killed one is in nobody's way.
#[derive(Debug)]
pub struct PidFile {
    file: File,
    path: PathBuf,
}

/// Between opening and locking, its former owner may remove the file; then the next one is tried.
const PID_FILE_TRIES: usize = 8;

impl PidFile {
    /// Creates or takes over the file and writes the pid.
    ///
    /// # Errors
    /// [`Failure::Local`] if it cannot be written, or another process holds it.
    pub fn take(place: &Place) -> Result<Self, Failure> {
        let path = place.path();
        let fail =
            |e: &dyn std::fmt::Display| Failure::Local(format!("cannot write the pid file {}: {e}", path.display()));
        let nofollow = match place {
            Place::Named(_) => 0,
            Place::Temporary(_) => libc::O_NOFOLLOW,
        };
        for _ in 0..PID_FILE_TRIES {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(nofollow | libc::O_NONBLOCK)
                .open(path)
                .map_err(|e| fail(&e))?;
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                let text = "another sc uses it; give each its own --pidfile";
                return Err(fail(&text));
            }
            if is_at(&file, path) {
                write_pid(&mut file).map_err(|e| fail(&e))?;
                let path = path.to_owned();
                return Ok(Self { file, path });
            }
        }
        Err(fail(&"it is removed again and again"))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

/// Whether `path` still names this very file.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |m: fs::Metadata| (m.dev(), m.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(own), Ok(there)) => identity(own) == identity(there),
        _ => false,
    }
}

/// The ready file: there while the tunnel is ready, and never otherwise.
#[derive(Debug)]
pub struct ReadyFile {
    path: Option<PathBuf>,
    there: bool,
}

impl ReadyFile {
    /// Checks that it can be made, and removes the empty one of an earlier run, which would be believed. A file with
    /// content is somebody's: it is not touched.
    ///
    /// # Errors
    /// [`Failure::Local`] with the reason.
    pub fn prepare(path: Option<PathBuf>) -> Result<Self, Failure> {
        let there = false;
        let Some(path) = path else {
            return Ok(Self { path: None, there });
        };
        let fail = |e: &dyn std::fmt::Display| ready_failure(&path, e);
        match fs::metadata(&path) {
            Ok(m) if m.is_file() && m.len() == 0 => {
                fs::remove_file(&path).map_err(|e| fail(&e))?;
            }
            Ok(_) => return Err(fail(&"something that is no ready file is there")),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(fail(&e)),
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| fail(&io::Error::from(e)))?;
        let path = Some(path);
        Ok(Self { path, there })
    }

    /// Makes the file.
    ///
    /// # Errors
    /// [`Failure::Local`] with the reason.
    pub fn touch(&mut self) -> Result<(), Failure> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let made = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .and_then(|file| file.set_modified(std::time::SystemTime::now()));
        made.map_err(|e| ready_failure(path, &e))?;
        self.there = true;
        Ok(())
    }

    /// Removes the file, if this process made it.
    pub fn remove(&mut self) {
        if let (Some(path), true) = (&self.path, self.there) {
            let _ = fs::remove_file(path);
        }
        self.there = false;
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ready_failure(path: &Path, e: &dyn std::fmt::Display) -> Failure {
    Failure::Local(format!("cannot write the ready file {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_held_once_and_leaves_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sc.pid");
        fs::write(&path, "99999999 left by a killed one, and longer").unwrap();
        let place = Place::Named(path.clone());
        let held = PidFile::take(&place).unwrap();
        let pid = format!("{}\n", std::process::id());
        assert_eq!(fs::read_to_string(&path).unwrap(), pid);
        let second = PidFile::take(&place).unwrap_err();
        assert_eq!(second.code(), 7);
        assert!(second.to_string().contains("another sc uses it"));
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn a_pid_file_of_someone_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sc.pid");
        let held = PidFile::take(&Place::Temporary(path.clone())).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1").unwrap();
        drop(held);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
    }

    #[test]
    fn a_ready_file_comes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready");
        fs::write(&path, "").unwrap();
        let mut ready = ReadyFile::prepare(Some(path.clone())).unwrap();
        assert!(!path.exists(), "an old one would be believed");
        ready.touch().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        drop(ready);
        assert!(!path.exists());
    }

    #[test]
    fn a_ready_file_harms_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        for bad in [path.clone(), folder.path().to_owned(), folder.path().join("no/ready")] {
            assert_eq!(ReadyFile::prepare(Some(bad)).unwrap_err().code(), 7);
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }
}
