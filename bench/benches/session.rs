//! Cost of the multiplex itself: `cargo bench -p bench`.

use bench::core::Pair;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn exchanges(c: &mut Criterion) {
    let mut group = c.benchmark_group("session");
    let mut pair = Pair::connected();
    group.throughput(Throughput::Elements(1));
    group.bench_function("exchange_1k", |b| b.iter(|| pair.exchange(300, 1_024)));
    group.throughput(Throughput::Bytes(8 << 20));
    group.bench_function("bulk_8m", |b| b.iter(|| pair.exchange(300, 8 << 20)));
    group.finish();
}

criterion_group!(benches, exchanges);
criterion_main!(benches);
