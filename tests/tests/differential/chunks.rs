//! Bodies in chunks, as most senders write them, or with one thing about them that readers take in different ways.

use tests::simulation::prng::Prng;

/// What is odd about a body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Odd {
    Size,
    Extension,
    /// What ends the line of a size.
    LineEnd,
    /// What ends the bytes of a chunk.
    ChunkEnd,
    /// The chunk that ends the body.
    Last,
    Trailers,
}

impl Odd {
    pub const ALL: [Self; 6] = [
        Self::Size,
        Self::Extension,
        Self::LineEnd,
        Self::ChunkEnd,
        Self::Last,
        Self::Trailers,
    ];
}

/// What may stand for CRLF.
const LINE_ENDS: &[&str] = &["\n", "\r", "", "\r\r\n", "\n\n", "xx", "\r\nx", " \r\n", "\n\r"];

/// The payload in chunks; `odd` is about one of them.
pub fn chunks(random: &mut Prng, payload: &[u8], odd: Option<Odd>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = payload;
    let largest = random.pick(&[1, 7, 40, 400]);
    let mut to_come = odd;
    while !rest.is_empty() {
        let length = (random.between(1, largest) as usize).min(rest.len());
        let (piece, after) = rest.split_at(length);
        rest = after;
        let here = to_come.take_if(|_| rest.is_empty() || random.chance(30));
        let size = match random.below(5) {
            _ if here == Some(Odd::Size) => odd_size(random, length),
            0 => format!("{length:X}"),
            1 => format!("00{length:x}"),
            _ => format!("{length:x}"),
        };
        let extension = match here {
            Some(Odd::Extension) => odd_extension(random),
            _ if random.chance(20) => {
                random.pick(&[";a", ";a=b", ";a=\"b c\"", ";a=\"\\\"\";d", ";", "; a = b", ";0\t"])
            }
            _ => "",
        };
        let mut end_of = |odd| {
            if here == Some(odd) {
                random.pick(LINE_ENDS)
            } else {
                "\r\n"
            }
        };
        let (line_end, chunk_end) = (end_of(Odd::LineEnd), end_of(Odd::ChunkEnd));
        out.extend_from_slice(format!("{size}{extension}{line_end}").as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(chunk_end.as_bytes());
    }
    let last = match odd {
        Some(Odd::Last) => random.pick(&[
            "0\n",
            "0\r\n\n",
            "",
            "-0\r\n",
            "0x0\r\n",
            "0 \r\n",
            "g\r\n",
            "00000000000000000000\r\n",
            "10000000000000000\r\n",
        ]),
        _ => random.pick(&["0\r\n", "0\r\n", "0\r\n", "000\r\n", "0;last\r\n"]),
    };
    let trailers = match random.below(8) {
        _ if odd == Some(Odd::Trailers) => random.pick(&[
            "Content-Length: 5\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n",
            "Host: other.test\r\n\r\n",
            "X : y\r\n\r\n",
            "X: y\n\r\n",
            "X: y\r\n z\r\n\r\n",
            "X\r\n\r\n",
            ": y\r\n\r\n",
            "\n",
            "\r",
            "",
            "GET /hidden HTTP/1.1\r\n\r\n",
        ]),
        0 => "X-Sum: 1\r\n\r\n",
        1 => "X-Sum: \"a\"\r\nY:\r\n\r\n",
        _ => "\r\n",
    };
    out.extend_from_slice(last.as_bytes());
    out.extend_from_slice(trailers.as_bytes());
    out
}

fn odd_size(random: &mut Prng, length: usize) -> String {
    match random.below(13) {
        0 => format!("+{length:x}"),
        1 => format!("-{length:x}"),
        2 => format!("0x{length:x}"),
        3 => format!(" {length:x}"),
        4 => format!("{length:x} "),
        5 => format!("{length:x}\t"),
        6 => format!("{length:x}g"),
        7 => format!("10000000000000{length:03x}"),
        8 => format!("fffffffffffff{length:03x}"),
        9 => format!("1000000000000000{length:x}"),
        10 => format!("0000000000000000000000{length:x}"),
        11 => format!("{length:x}_0"),
        _ => format!("{:x}", length + random.between(1, 3) as usize),
    }
}

fn odd_extension(random: &mut Prng) -> &'static str {
    random.pick(&[
        ";a\n",
        ";a=\"\r\n\"",
        ";a\rb",
        ";a\0",
        ";\n",
        " ;a",
        ";a=\"\n0\r\n\r\n",
        ";\u{e4}",
        "\r",
        ";a=\"\\\r\n\"",
    ])
}
