//! Where a shard reads local sockets into: four chunks for all of them, so that an idle stream holds no buffer.

use std::cell::RefCell;
use std::io;

use bytes::BytesMut;

use super::runtime::READ_BUFFERS_MAX;
use super::transport::Transport;
use crate::copies;
use crate::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, RECORD_BYTES_MAX};

/// Up to this many bytes a read moves into a buffer of its own size: a chunk that a few bytes keep alive would cost
/// its whole capacity until the peer has acknowledged them, and the send budget counts bytes. Half as much again is
/// what `limits::memory_bytes` grants.
const OWN_BUFFER_BYTES_MAX: usize = RECORD_BYTES_MAX / 3 * 2;

/// The chunks of one shard. Each has 12 bytes of head-room for the header of the DATA frame that it becomes.
#[derive(Default)]
pub struct Buffers {
    chunks: RefCell<Vec<BytesMut>>,
}

impl Buffers {
    /// Reads once, at most `room` bytes, without waiting, and hands the bytes to `sink` as unwritten DATA frames (12
    /// bytes of head-room, then 1 … 16,372 bytes of payload): big ones as the chunk itself, small ones copied. Returns
    /// the bytes of payload; 0 is the end of the socket.
    ///
    /// # Errors
    /// `WouldBlock`: wait for [`Transport::readable`]. Anything else ends the socket.
    ///
    /// # Panics
    /// If `room` is 0: a read of nothing cannot be told from the end.
    pub fn read(&self, socket: &Transport, room: usize, mut sink: impl FnMut(BytesMut)) -> io::Result<usize> {
        assert!(room > 0, "a read without room");
        let mut chunks = self.chunks.take();
        let wanted = room.div_ceil(FRAME_PAYLOAD_BYTES_MAX).min(READ_BUFFERS_MAX);
        while chunks.len() < wanted {
            chunks.push(chunk());
        }
        let result = socket.try_read(&mut chunks[..wanted], room);
        if result.is_ok() {
            for chunk in &mut chunks[..wanted] {
                match chunk.len() - FRAME_HEADER_BYTES {
                    0 => break,
                    1..=OWN_BUFFER_BYTES_MAX => {
                        sink(frame(&chunk[FRAME_HEADER_BYTES..]));
                        chunk.truncate(FRAME_HEADER_BYTES);
                    }
                    _ => sink(std::mem::replace(chunk, self::chunk())),
                }
            }
        }
        self.chunks.replace(chunks);
        result
    }

    /// As [`Buffers::read`], into `inbox`: it grows by what came and no more.
    ///
    /// # Errors
    /// As there.
    pub fn read_into(&self, socket: &Transport, room: usize, inbox: &mut BytesMut) -> io::Result<usize> {
        let mut chunks = self.chunks.take();
        if chunks.is_empty() {
            chunks.push(chunk());
        }
        let first = &mut chunks[..1];
        let result = socket.try_read(first, room);
        copies::append(inbox, &first[0][FRAME_HEADER_BYTES..]);
        first[0].truncate(FRAME_HEADER_BYTES);
        self.chunks.replace(chunks);
        result
    }
}

fn chunk() -> BytesMut {
    head_room(FRAME_PAYLOAD_BYTES_MAX)
}

/// The 12 bytes of head-room of an unwritten DATA frame, and space for so much payload.
pub fn head_room(payload: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER_BYTES + payload);
    frame.resize(FRAME_HEADER_BYTES, 0);
    frame
}

/// An unwritten DATA frame of `payload`: 12 bytes of head-room, then a copy of the bytes.
///
/// # Panics
/// If there are more than 16,372 bytes.
pub fn frame(payload: &[u8]) -> BytesMut {
    assert!(payload.len() <= FRAME_PAYLOAD_BYTES_MAX);
    let mut frame = head_room(payload.len());
    copies::append(&mut frame, payload);
    frame
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::shard::runtime::{Driver, Runtime, Socket};

    #[test]
    fn a_frame_keeps_at_most_half_as_much_again_as_it_holds() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let runtime = Runtime::new(Driver::Epoll).unwrap();
        runtime.run(async move {
            let socket = Transport::from(Socket::new(OwnedFd::from(reader)).unwrap());
            let buffers = Buffers::default();
            for length in [1, 1_000, 4_096, 8_000, 10_921, 10_923, 16_372, 20_000] {
                writer.write_all(&vec![7; length]).unwrap();
                let mut held = 0;
                let read = buffers.read(&socket, 1 << 20, |frame| {
                    held += frame.capacity();
                    assert!(
                        frame.capacity() <= frame.len() / 2 * 3 + 64,
                        "{} in {}",
                        frame.len(),
                        frame.capacity()
                    );
                });
                assert_eq!(read.unwrap(), length);
                assert!(held > length);
            }
        });
    }
}
