//! Cost of the sans-IO parts and of all of them together: `cargo bench -p bench`, or `cargo bench -p bench -- GROUP`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bench::core::Pair;
use bench::heads;
use bench::page::RESOURCES;
use bench::records;
use bench::suite::Suite;
use bytes::{Bytes, BytesMut};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use dataplane::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, LINK_WRITE_BYTES_MAX, RECORD_BYTES_MAX};
use dataplane::mux::frame::{Frame, Header, decode, encode};
use dataplane::mux::{Kind, Open, Timings};
use dataplane::time::Time;

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.warm_up_time(Duration::from_secs(1));
    group.measurement_time(Duration::from_secs(2));
    group
}

/// The frames of one exchange, both ways.
fn exchange() -> Vec<Frame> {
    let open = Open {
        kind: Kind::Http,
        settings: 1,
        credit: 65_536,
        port: 80,
        host: Bytes::from_static(heads::HOST.as_bytes()),
        shown: None,
    };
    vec![
        Frame::Open(2, open),
        Frame::Data(2, Bytes::from(heads::request(0, 1))),
        Frame::Fin(2, None),
        Frame::Data(2, Bytes::from(vec![7; FRAME_PAYLOAD_BYTES_MAX])),
        Frame::Credit(2, 131_072),
        Frame::Fin(2, Some(Timings::default())),
        Frame::Ack(65_536),
    ]
}

fn frames(c: &mut Criterion) {
    let frames = exchange();
    let mut wire = BytesMut::new();
    frames.iter().for_each(|frame| encode(frame, &mut wire));
    let wire = wire.freeze();
    let mut group = group(c, "frames");
    group.throughput(Throughput::Elements(frames.len() as u64));
    let mut out = BytesMut::with_capacity(wire.len());
    group.bench_function("encode", |b| {
        b.iter(|| {
            out.clear();
            frames.iter().for_each(|frame| encode(frame, &mut out));
            black_box(&out);
        });
    });
    group.bench_function("decode", |b| {
        b.iter(|| {
            let mut input = wire.clone();
            while let Some(header) = Header::decode(&input) {
                let header = header.expect("a valid header");
                let mut whole = input.split_to(FRAME_HEADER_BYTES + header.length);
                black_box(decode(header, whole.split_off(FRAME_HEADER_BYTES)).expect("a valid frame"));
            }
        });
    });
    group.finish();
}

/// What each end does with a head; of both kinds that either peer sends.
fn head_parse(c: &mut Criterion) {
    let requests: Vec<Vec<u8>> = (0..4).map(|resource| heads::request(0, resource)).collect();
    let answers = [heads::answer(0, None), heads::answer(1, Some(31_234))];
    let mut out = Vec::new();
    let asked = heads::forward(&requests[0], &mut out);
    let forwarded: Vec<Vec<u8>> = requests
        .iter()
        .map(|request| {
            let mut out = Vec::new();
            heads::forward(request, &mut out);
            out
        })
        .collect();
    let mut group = group(c, "head_parse");
    group.throughput(Throughput::Elements(requests.len() as u64));
    group.bench_function("request_at_endpoint", |b| {
        b.iter(|| {
            for request in &requests {
                out.clear();
                black_box(heads::forward(black_box(request), &mut out));
            }
        });
    });
    group.bench_function("request_at_sc", |b| {
        b.iter(|| {
            for request in &forwarded {
                black_box(heads::receive(black_box(request), heads::HOST, 80));
            }
        });
    });
    group.throughput(Throughput::Elements(answers.len() as u64));
    group.bench_function("answer_at_sc", |b| {
        b.iter(|| {
            for answer in &answers {
                black_box(heads::follow(black_box(answer)));
            }
        });
    });
    group.bench_function("answer_at_endpoint", |b| {
        b.iter(|| {
            for answer in &answers {
                out.clear();
                black_box(heads::deliver(black_box(answer), asked, &mut out));
            }
        });
    });
    group.finish();
}

fn session(c: &mut Criterion) {
    let mut group = group(c, "session");
    let mut pair = Pair::connected();
    group.throughput(Throughput::Elements(1));
    group.bench_function("exchange_1k", |b| b.iter(|| pair.exchange(300, 1_024)));
    group.throughput(Throughput::Bytes(8 << 20));
    group.bench_function("bulk_8m", |b| b.iter(|| pair.exchange(300, 8 << 20)));
    group.finish();
}

/// Sealing and opening one write: of whole records, of small frames that share records, of one small frame.
fn tls(c: &mut Criterion) {
    let mut group = group(c, "tls");
    let writes = [
        ("records_16k", RECORD_BYTES_MAX, LINK_WRITE_BYTES_MAX / RECORD_BYTES_MAX),
        ("frames_100", 100, LINK_WRITE_BYTES_MAX / 100),
        ("frame_100_alone", 100, 1),
    ];
    for (name, bytes, count) in writes {
        let [mut wire, _] = records::connected();
        let write = vec![Bytes::from(vec![7; bytes]); count];
        group.throughput(Throughput::Bytes((bytes * count) as u64));
        group.bench_function(name, |b| {
            b.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    let now = Time::now();
                    let begun = Instant::now();
                    wire.seal(&write);
                    spent += begun.elapsed();
                    // The network's part.
                    wire.carry();
                    let begun = Instant::now();
                    let opened: usize = std::iter::from_fn(|| wire.open(now)).map(|bytes| bytes.len()).sum();
                    spent += begun.elapsed();
                    assert_eq!(opened, bytes * count);
                }
                spent
            });
        });
    }
    group.finish();
}

/// 100 parallel tests. The time is CPU time of both ends; what it comes to is printed in words, too.
fn suite_100(c: &mut Criterion) {
    const PAGES: usize = 10;
    let mut suite = Suite::new(usize::MAX);
    let mut group = group(c, "suite_100");
    group.sampling_mode(SamplingMode::Flat);
    group.sample_size(20);
    group.measurement_time(Duration::from_secs(4));
    group.throughput(Throughput::Elements(PAGES as u64));
    group.bench_function("10_pages", |b| {
        b.iter_custom(|times| (0..times).map(|_| suite.run(PAGES * RESOURCES)).sum());
    });
    group.finish();
    // Nothing was spent where a filter left it out.
    if suite.spent().resources > 0 {
        println!("{}\n", suite.spent());
    }
}

criterion_group!(benches, frames, head_parse, session, tls, suite_100);
criterion_main!(benches);
