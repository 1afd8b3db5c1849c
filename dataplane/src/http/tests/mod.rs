//! Tables of messages, each with what must become of it.

mod bodies;
mod fuzz;
mod pages;
mod requests;
mod responses;
mod rewrites;

/// Lines joined by CRLF, with the empty line at the end.
fn head(lines: &[&str]) -> Vec<u8> {
    let mut head = lines.join("\r\n").into_bytes();
    head.extend_from_slice(b"\r\n\r\n");
    head
}
