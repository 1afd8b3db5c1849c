//! The one function through which payload bytes are copied in user space outside the cipher.
//!
//! Bulk bytes are meant to be touched once a direction at each end, by the cipher. Test builds (feature
//! `count-copies`) count what goes through here, so that a copy too many shows in a number.

#[cfg(feature = "count-copies")]
static COPIED_BYTES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Copies `src` over `dst`.
///
/// # Panics
/// When the lengths differ: both are the caller's own slices, never a length that a peer named.
pub fn copy(dst: &mut [u8], src: &[u8]) {
    #[cfg(feature = "count-copies")]
    COPIED_BYTES.fetch_add(src.len() as u64, std::sync::atomic::Ordering::Relaxed);
    dst.copy_from_slice(src);
}

/// Payload bytes that this process has copied so far.
#[cfg(feature = "count-copies")]
pub fn copied_bytes() -> u64 {
    COPIED_BYTES.load(std::sync::atomic::Ordering::Relaxed)
}
