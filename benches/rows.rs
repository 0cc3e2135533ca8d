//! What one row costs on the CPU: reading it, running jq on it.
#![allow(missing_docs, clippy::expect_used)]

use std::hint::black_box;

use chainette::expr::jq::JqProgram;
use chainette::expr::{Scope, Vars};
use chainette::row::{Record, RowId};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn line() -> String {
    format!(r#"{{"id": 17, "text": "{}"}}"#, "lorem ipsum ".repeat(17))
}

fn rows(c: &mut Criterion) {
    let line = line();
    let mut group = c.benchmark_group("row");
    group.throughput(Throughput::Bytes(line.len() as u64));
    group.bench_function("parse", |b| {
        b.iter(|| Record::parse(black_box(&line)).expect("a record"))
    });
    group.bench_function("fields", |b| {
        let record = Record::parse(&line).expect("a record");
        b.iter(|| black_box(&record).fields().count());
    });
    for (name, program) in [
        ("jq_identity", "."),
        ("jq_select", "select(.id % 2 == 1)"),
        ("jq_add_field", ". + {n_chars: (.text | length)}"),
    ] {
        let program = JqProgram::compile(program, &[].into()).expect("a program");
        group.bench_function(name, |b| {
            b.iter(|| {
                let item = Record::parse(&line).expect("a record");
                let (row_id, vars) = (RowId::root(17), Vars::default());
                let scope = Scope {
                    row_id: &row_id,
                    item: &item,
                    chain_input: &item,
                    vars: &vars,
                    names: &[],
                };
                let mut out = Vec::new();
                program.run(&scope, &mut out).expect("it runs");
                out
            });
        });
    }
    group.finish();
}

criterion_group!(benches, rows);
criterion_main!(benches);
