//! The endpoint's process as the system sees it: how it is started, and the file of what it wrote to stderr.

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command as Process};

use super::limits::STDERR_FILES_MAX;

/// Starts this program again as an endpoint. Its control socket is its standard input: nothing secret, and nothing
/// else, goes by argument, environment or file.
///
/// # Errors
/// What the system says.
pub fn spawn(state: &Path, id: &str, control: OwnedFd) -> std::io::Result<Child> {
    let stderr = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(stderr_file(state, id))?;
    Process::new("/proc/self/exe")
        .arg0("sc-cloud")
        .arg("endpoint")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(control))
        .stdout(Stdio::null())
        .stderr(stderr)
        // Ctrl-C in a terminal is for the cloud alone: it drains the endpoints.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Where the endpoint `id` writes what it says to nobody: panics.
pub fn stderr_file(state: &Path, id: &str) -> PathBuf {
    folder(state).join(format!("{id}.stderr"))
}

/// Where the endpoints' files are.
pub fn folder(state: &Path) -> PathBuf {
    state.join("endpoints")
}

/// Removes such a file if there is nothing in it.
pub fn discard_if_empty(path: &Path) {
    if fs::metadata(path).is_ok_and(|m| m.len() == 0) {
        // Left behind it costs a name only.
        let _ = fs::remove_file(path);
    }
}

/// Makes the folder of the endpoints' files, for this user only, and keeps the newest of what they wrote.
///
/// # Errors
/// The folder cannot be made or read.
pub fn prepare(state: &Path) -> std::io::Result<()> {
    let folder = folder(state);
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
    let mut files: Vec<_> = fs::read_dir(&folder)?
        .flatten()
        .filter(|f| f.path().extension().is_some_and(|e| e == "stderr"))
        .filter_map(|f| Some((f.metadata().ok()?.modified().ok()?, f.path())))
        .collect();
    files.sort();
    let old = files.len().saturating_sub(STDERR_FILES_MAX);
    for (_, path) in &files[..old] {
        // One that stays is tried again at the next start.
        let _ = fs::remove_file(path);
    }
    Ok(())
}
