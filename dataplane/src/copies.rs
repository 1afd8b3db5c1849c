//! The one function through which payload bytes are copied in user space outside the cipher.
//!
//! Bulk bytes are meant to be touched once a direction at each end, by the cipher. Test builds (feature
//! `count-copies`) count what goes through here, so that a copy too many shows in a number.

use bytes::BufMut;

#[cfg(feature = "count-copies")]
static COPIED_BYTES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Appends a copy of `src` to `dst`.
pub fn append(dst: &mut impl BufMut, src: &[u8]) {
    moved(src.len());
    dst.put_slice(src);
}

/// Counts bytes that a buffer moves within or between its own allocations.
pub fn moved(bytes: usize) {
    #[cfg(feature = "count-copies")]
    COPIED_BYTES.fetch_add(bytes as u64, std::sync::atomic::Ordering::Relaxed);
    #[cfg(not(feature = "count-copies"))]
    let _ = bytes;
}

/// Payload bytes that this process has copied so far.
#[cfg(feature = "count-copies")]
pub fn copied_bytes() -> u64 {
    COPIED_BYTES.load(std::sync::atomic::Ordering::Relaxed)
}
