//! How an endpoint whose `serve` is gone comes to another one.
//!
//! Nothing can connect to an endpoint, and it connects to nobody. So each has from its start a datagram socket with a
//! name in the state folder, which only its owner can open. A new `serve` sends fresh sockets there: the control socket,
//! and one for the browsers of each shard. They count only with the key that this endpoint was started with.

use std::fmt;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind,
    sendmsg_addr, socket_with,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroize;

use super::limits::MESSAGE_FDS_MAX;
use super::process::folder;
use super::seqpacket::Seqpacket;
use crate::secret::{NoRandomness, ct_eq, hex, unhex};

const KEY_BYTES: usize = 32;
const SUFFIX: &str = "sock";

/// What proves to one endpoint process that it may be adopted.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// # Errors
    /// The system gives no random numbers.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = [0; KEY_BYTES];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }

    /// A key of which these are the bytes, as [`Key::expose`] gave them.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes themselves. Every call is a place to look at in a review.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    fn fits(&self, shown: &[u8]) -> bool {
        ct_eq(&self.0, shown)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = unhex(&text).ok_or_else(|| serde::de::Error::custom("no adoption key"))?;
        Ok(Self(bytes))
    }
}

/// Makes the socket by which the next process of the endpoint `id` can be adopted.
///
/// # Errors
/// What the system says, with the path.
pub fn make(state: &Path, id: &str) -> io::Result<OwnedFd> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path(state, id).display()));
    discard(state, id);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let address = Address::of(state, id).map_err(named)?;
    bind(&socket, &address.name).map_err(|e| named(e.into()))?;
    Ok(socket)
}

/// Removes the name of such a socket: nobody can be adopted by it any more.
pub fn discard(state: &Path, id: &str) {
    // Left behind it costs a name only, and is removed when its turn comes again.
    let _ = std::fs::remove_file(path(state, id));
}

/// Removes all such names but those of `kept`.
pub fn discard_others(state: &Path, kept: &[String]) {
    let Ok(files) = std::fs::read_dir(folder(state)) else {
        return;
    };
    for file in files.flatten().map(|f| f.path()) {
        let id = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        if file.extension().is_some_and(|e| e == SUFFIX) && !kept.iter().any(|k| k == id) {
            discard(state, id);
        }
    }
}

fn path(state: &Path, id: &str) -> PathBuf {
    folder(state).join(format!("{id}.{SUFFIX}"))
}

/// Offers sockets to the process of the endpoint `id`: its control socket, then one for the browsers of each shard.
///
/// # Errors
/// `ConnectionRefused` or `NotFound`: there is no such process. `WouldBlock`: it has not taken earlier offers.
pub fn offer(state: &Path, id: &str, key: &Key, sockets: &[OwnedFd]) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let address = Address::of(state, id)?;
    let data = [IoSlice::new(key.expose())];
    sendmsg_addr(&socket, &address.name, &data, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// An address has room for 108 bytes, and a state folder may be deep. By way of the open folder each is short.
struct Address {
    name: SocketAddrUnix,
    _folder: OwnedFd,
}

impl Address {
    fn of(state: &Path, id: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder(state), flags, Mode::empty())?;
        let name = SocketAddrUnix::new(format!("/proc/self/fd/{}/{id}.{SUFFIX}", folder.as_raw_fd()))?;
        Ok(Self { name, _folder: folder })
    }
}

/// The endpoint's end: it reads what arrives, and does nothing else.
pub struct Door {
    socket: Seqpacket,
    key: Key,
}

impl Door {
    /// # Errors
    /// What the reactor says.
    pub fn new(socket: OwnedFd, key: Key) -> io::Result<Self> {
        let socket = Seqpacket::new(socket)?;
        Ok(Self { socket, key })
    }

    /// The sockets of the next offer with the right key; others are closed.
    ///
    /// # Errors
    /// The socket is of no use any more.
    pub async fn offered(&self) -> io::Result<Vec<OwnedFd>> {
        loop {
            let mut shown = [0; KEY_BYTES];
            match self.socket.receive_into(&mut shown).await {
                Ok(Some((length, sockets))) if self.key.fits(&shown[..length]) => return Ok(sockets),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::process::prepare;
    use std::time::Duration;

    #[test]
    fn a_key_never_shows_itself_and_survives_as_text() {
        let key = Key::random().unwrap();
        assert_eq!(format!("{key:?} {:?}", Some(&key)), "*** Some(***)");
        let text = serde_json::to_string(&key).unwrap();
        assert!(serde_json::from_str::<Key>(&text).unwrap() == key);
        assert!(Key::of(key.expose()).unwrap() == key && Key::of(b"short").is_none());
        assert!(serde_json::from_str::<Key>("\"00\"").is_err());
    }

    #[test]
    fn only_the_right_key_opens_and_the_folder_may_be_deep() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("deep/".repeat(60));
        std::fs::create_dir_all(&state).unwrap();
        prepare(&state).unwrap();
        let (key, other) = (Key::random().unwrap(), Key::random().unwrap());
        let sockets = |n| -> Vec<OwnedFd> {
            let ends = std::iter::repeat_with(|| std::os::unix::net::UnixStream::pair().unwrap().0.into());
            ends.take(n).collect()
        };
        let gone = offer(&state, "a", &key, &sockets(1)).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        crate::runtime::Runtime::epoll().unwrap().block_on(async {
            let door = Door::new(make(&state, "a").unwrap(), key.clone()).unwrap();
            offer(&state, "a", &other, &sockets(1)).unwrap();
            offer(&state, "a", &key, &sockets(3)).unwrap();
            assert_eq!(door.offered().await.unwrap().len(), 3);
            let long = Key::random().unwrap();
            let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
            let address = Address::of(&state, "a").unwrap();
            for bytes in [
                &[key.expose(), b"x"].concat()[..],
                &key.expose()[..31],
                long.expose(),
                b"",
            ] {
                rustix::net::sendto(&socket, bytes, SendFlags::empty(), &address.name).unwrap();
            }
            let more = tokio::time::timeout(Duration::from_millis(50), door.offered()).await;
            assert!(more.is_err(), "{more:?}");
            // The next process has a socket of its own under the same name.
            let next = Door::new(make(&state, "a").unwrap(), other.clone()).unwrap();
            offer(&state, "a", &other, &sockets(1)).unwrap();
            assert_eq!(next.offered().await.unwrap().len(), 1);
            drop(next);
            let gone = offer(&state, "a", &other, &sockets(1)).unwrap_err();
            assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
        });
        make(&state, "b").unwrap();
        discard_others(&state, &["b".into()]);
        assert!(!path(&state, "a").exists() && path(&state, "b").exists());
    }
}
