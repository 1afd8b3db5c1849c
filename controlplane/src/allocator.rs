//! The allocator of both programs gives memory back beside what it does by itself.

/// Lets shards ask for it.
pub fn share() {
    dataplane::shard::give_back_by(collect);
}

fn collect() {
    // SAFETY: takes no reference, and frees only what nothing uses.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
