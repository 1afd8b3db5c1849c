#![no_main]

use dataplane::http::{body, head};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    head::fuzz_head(data);
    head::fuzz_response(data);
    body::fuzz_body(data);
});
