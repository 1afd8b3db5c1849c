use crate::http::{Body, Consumed, Framing};
use crate::limits::{CHUNK_LINE_BYTES_MAX, HEAD_FIELDS_MAX, TRAILER_BYTES_MAX};

/// Bytes of the message, or `None` if it is refused; whole and at every split.
#[track_caller]
fn chunked(input: &[u8]) -> Option<Consumed> {
    let whole = Body::new(Framing::Chunked).advance(input).ok();
    for cut in 0..=input.len() {
        let mut body = Body::new(Framing::Chunked);
        let split = body.advance(&input[..cut]).and_then(|first| {
            let rest = &input[first.bytes..];
            let second = if first.done { first } else { body.advance(rest)? };
            let bytes = if first.done {
                first.bytes
            } else {
                first.bytes + second.bytes
            };
            Ok(Consumed {
                bytes,
                done: second.done,
            })
        });
        assert_eq!(
            split.ok(),
            whole,
            "cut at {cut} of {:?}",
            String::from_utf8_lossy(input)
        );
    }
    whole
}

#[test]
fn chunks_end_where_they_end() {
    for input in [
        &b"0\r\n\r\n"[..],
        b"5\r\nhello\r\n0\r\n\r\n",
        b"a\r\n0123456789\r\nA\r\n0123456789\r\n000\r\n\r\n",
        b"1;a\r\nx\r\n0;b=c;d=\"e\\\"; f\"\r\n\r\n",
        b"1;\t x = y \r\nx\r\n0\r\n\r\n",
        b"0\r\nX-Sum: 1\r\nY:\r\n\r\n",
        b"0\r\nETag: \"\xc3\xa4\"\r\n\r\n",
    ] {
        let mut bytes = input.to_vec();
        bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
        let want = Consumed {
            bytes: input.len(),
            done: true,
        };
        assert_eq!(chunked(&bytes), Some(want), "{:?}", String::from_utf8_lossy(input));
    }
}

#[test]
fn ambiguous_chunks_are_refused() {
    for input in [
        &b"\r\n"[..],
        b"\n",
        b" 5\r\n",
        b"5 \r\n",
        b"5\t\r\n",
        b"5 ;a\r\n",
        b"+5\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b"g\r\n",
        b";a\r\n",
        b"5\n",
        b"5\rhello",
        b"5\r\r\n",
        b"5;\n",
        b"5;a\rb\r\n",
        b"5;a\nb\r\n",
        b"5;a=\"\r\n\"\r\n",
        b"5;a=\"\n\"\r\n",
        b"5;a=\"\\\r\"\r\n",
        b"5;a\x00\r\n",
        b"5;a\x7f\r\n",
        b"5;\xff\r\n",
        b"5\r\nhello0\r\n",
        b"5\r\nhello\n0\r\n",
        b"5\r\nhello\r0\r\n",
        b"5\r\nhello\r\n\r\n",
        b"FFFFFFFFFFFFFFFF\r\n",
        b"8000000000000000\r\n",
        b"10000000000000000\r\n",
        b"00000000000000005\r\n",
        b"0\n",
        b"0\r\n\n",
        b"0\r\nX: y\n",
        b"0\r\nX: y\rz",
        b"0\r\n X: y\r\n",
        b"0\r\nX: y\r\n z\r\n",
        b"0\r\nX : y\r\n",
        b"0\r\n: y\r\n",
        b"0\r\nX\r\n",
        b"0\r\nX: \x00\r\n",
        b"0\r\nContent-Length: 5\r\n",
        b"0\r\ntransfer-encoding: chunked\r\n",
        b"0\r\nHost: a\r\n",
        b"0\r\nAUTHORIZATION: x\r\n",
    ] {
        assert_eq!(chunked(input), None, "{:?}", String::from_utf8_lossy(input));
    }
    assert!(chunked(b"7FFFFFFFFFFFFFFF\r\nx").is_some());
}

#[test]
fn lines_and_trailers_are_bounded() {
    let line = |n: usize| format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(n - 3)).into_bytes();
    let mut body = Body::new(Framing::Chunked);
    assert!(body.advance(&line(CHUNK_LINE_BYTES_MAX)).unwrap().done);
    assert!(
        Body::new(Framing::Chunked)
            .advance(&line(CHUNK_LINE_BYTES_MAX + 1))
            .is_err()
    );

    let trailers = |n: usize| format!("0\r\n{}\r\n", "X: y\r\n".repeat(n)).into_bytes();
    assert!(
        Body::new(Framing::Chunked)
            .advance(&trailers(HEAD_FIELDS_MAX))
            .unwrap()
            .done
    );
    assert!(
        Body::new(Framing::Chunked)
            .advance(&trailers(HEAD_FIELDS_MAX + 1))
            .is_err()
    );
    let long = format!("0\r\nX: {}\r\n\r\n", "y".repeat(TRAILER_BYTES_MAX)).into_bytes();
    assert!(Body::new(Framing::Chunked).advance(&long).is_err());

    let mut body = Body::new(Framing::Chunked);
    let one = b"1;x\r\nx\r\n".repeat(100_000);
    assert_eq!(
        body.advance(&one),
        Ok(Consumed {
            bytes: one.len(),
            done: false
        })
    );
    assert!(
        body.advance(b"0\r\n\r\n").unwrap().done,
        "a long line is one line's, not the sum of all"
    );
}

#[test]
fn an_end_is_clean_only_where_the_message_may_end() {
    let message = b"2\r\nab\r\n0\r\nX: y\r\n\r\n";
    for cut in 0..=message.len() {
        let mut body = Body::new(Framing::Chunked);
        body.advance(&message[..cut]).unwrap();
        assert_eq!(body.clean_end(), cut == message.len(), "cut at {cut}");
    }
    let mut body = Body::new(Framing::Length(3));
    assert_eq!((body.clean_end(), body.remaining()), (false, Some(3)));
    assert_eq!(body.advance(b"ab"), Ok(Consumed { bytes: 2, done: false }));
    assert_eq!((body.clean_end(), body.remaining()), (false, Some(1)));
    assert_eq!(body.advance(b"cGET"), Ok(Consumed { bytes: 1, done: true }));
    assert_eq!(body.advance(b"GET"), Ok(Consumed { bytes: 0, done: true }));
    assert!(body.clean_end());

    let mut body = Body::new(Framing::UntilClose);
    assert_eq!(body.advance(b"abc"), Ok(Consumed { bytes: 3, done: false }));
    assert!(body.clean_end() && !body.is_done());
    for framing in [Framing::None, Framing::Length(0)] {
        assert_eq!(
            Body::new(framing).advance(b"GET"),
            Ok(Consumed { bytes: 0, done: true })
        );
    }
}

#[test]
fn huge_lengths_do_not_overflow() {
    let mut body = Body::new(Framing::Length(u64::MAX));
    assert_eq!(body.advance(b"abc"), Ok(Consumed { bytes: 3, done: false }));
    assert_eq!(body.remaining(), Some(u64::MAX - 3));
}

#[test]
fn runs_separate_content_from_chunks() {
    let input = b"3\r\nabc\r\n2;x=\"y\"\r\nde\r\n0\r\nX: y\r\n\r\nrest";
    for piece in 1..=input.len() {
        let mut body = Body::new(Framing::Chunked);
        let (mut content, mut at) = (Vec::new(), 0);
        while !body.is_done() {
            let slice = &input[at..(at + piece).min(input.len())];
            let run = body.run(slice).unwrap();
            if run.data {
                content.extend_from_slice(&slice[..run.bytes]);
            }
            at += run.bytes;
        }
        assert_eq!((content.as_slice(), &input[at..]), (&b"abcde"[..], &b"rest"[..]));
    }
}
