#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dataplane::tls::fuzz_open(data));
