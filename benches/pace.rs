//! Draws what `concurrency: auto` does before servers in virtual time: `benches/pace_knee.svg`, `benches/pace_limit.svg`.
//!
//!     cargo bench --profile dev --bench pace
//!
//! The servers and the gate are those of `tests/it/pace_model.rs`, which the tests of `pace.rs` assert on.

#![allow(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a script over a module of the tests"
)]

use std::fmt::Write as _;
use std::path::Path;

use chainette::engine::broker::pace::Pace;
use chainette::engine::broker::rate::Rate;
use chainette::spec::Concurrency;

use pace_model::{BIN, Bin, Kind, Model, Ran, Service};

#[path = "../tests/it/pace_model.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod pace_model;

/// A curve: its name, its colour, its values per bin.
struct Curve(&'static str, &'static str, Vec<f64>);

/// A panel of a plot: its title with the unit, the top of its axis, its curves.
struct Panel(String, f64, Vec<Curve>);

const GREY: &str = "#999999";
const BLUE: &str = "#1f6f8b";
const BROWN: &str = "#8b5a1f";
const GREEN: &str = "#5b8b1f";
const VIOLET: &str = "#7a3f9d";

fn main() {
    let knees = vec![(0.0, 8), (40.0, 64), (80.0, 16), (120.0, 200), (160.0, 12)];
    let service = Service::LogNormal(0.1, 0.5);
    let panels = [
        ("slots", Kind::Slots),
        ("batches, ×4 latency at the knee", Kind::Batch { drag: 3.0 }),
    ]
    .into_iter()
    .flat_map(|(name, kind)| {
        let model = Model {
            kind,
            service,
            wire: 0.002,
            knees: knees.clone(),
            end: 200.0,
            seed: 2,
        };
        let run = model.run(Pace::new(Concurrency::Auto, None), Rate::new(None, None));
        told(name, &model, &run);
        [
            Panel(
                format!("{name}: requests"),
                300.0,
                vec![
                    Curve("knee", GREY, steps(&model)),
                    Curve("in flight", BLUE, each(&run, |bin| bin.in_flight)),
                ],
            ),
            Panel(
                format!("{name}: throughput, % of the most"),
                100.0,
                vec![Curve("throughput", GREEN, each(&run, |bin| bin.done * 100.0))],
            ),
        ]
    })
    .collect();
    draw("pace_knee.svg", 200.0, panels);

    let service = Service::LogNormal(0.5, 0.5);
    let capped = Model {
        kind: Kind::Capped { retry_after: None },
        service,
        wire: 0.005,
        knees: vec![(0.0, 50), (60.0, 20), (120.0, 100)],
        end: 240.0,
        seed: 2,
    };
    let bucket = Model {
        kind: Kind::PerMinute {
            burst: 10.0,
            retry_after: false,
        },
        knees: vec![(0.0, 600)],
        ..capped.clone()
    };
    let mut panels = Vec::new();
    for (name, model) in [("50, 20, 100 in flight", capped), ("600 a minute", bucket)] {
        let run = model.run(Pace::new(Concurrency::Auto, None), Rate::new(None, None));
        told(name, &model, &run);
        let first = if matches!(model.kind, Kind::Capped { .. }) {
            let in_flight = each(&run, |bin| bin.in_flight);
            let curves = vec![
                Curve("limit", GREY, steps(&model)),
                Curve("in flight", BLUE, in_flight),
            ];
            Panel(format!("429 beyond {name}: requests in flight"), 120.0, curves)
        } else {
            let limit: Vec<f64> = steps(&model).iter().map(|limit| limit / 60.0).collect();
            // Over 5 s: single answers come by chance.
            let answers = each(&run, |bin| f64::from(bin.answered) / BIN);
            let mean = |(n, _): (usize, &f64)| {
                let around = &answers[n.saturating_sub(5)..(n + 5).min(answers.len())];
                around.iter().sum::<f64>() / around.len() as f64
            };
            let smooth = answers.iter().enumerate().map(mean).collect();
            let curves = vec![
                Curve("limit", GREY, limit),
                Curve("answers (mean of 5 s)", BROWN, smooth),
            ];
            Panel(format!("429 beyond {name}: answers per second"), 20.0, curves)
        };
        panels.push(first);
        let refused = Curve("refused", VIOLET, each(&run, |bin| f64::from(bin.refused)));
        panels.push(Panel(
            format!("429 beyond {name}: refused in 0.5 s"),
            10.0,
            vec![refused],
        ));
    }
    draw("pace_limit.svg", 240.0, panels);
}

/// Prints what each stretch between two moves was like, 10 s after the first of them.
fn told(name: &str, model: &Model, run: &Ran) {
    for (n, (moved, knee)) in model.knees.iter().enumerate() {
        let end = model.knees.get(n + 1).map_or(model.end, |(next, _)| *next);
        let (from, to) = (moved + 10.0, end);
        println!(
            "{name}, {knee}: {:.1} % of the most, {:.1} in flight, {:.0} answers/min, {:.2} % refused, at most {} at once",
            run.mean(from, to, |bin| bin.done) * 100.0,
            run.mean(from, to, |bin| bin.in_flight),
            run.per_minute(from, to),
            run.refused(from, to) * 100.0,
            run.largest_wave,
        );
    }
}

fn each(run: &Ran, of: impl Fn(&Bin) -> f64) -> Vec<f64> {
    run.bins.iter().map(of).collect()
}

/// The knee in each bin.
fn steps(model: &Model) -> Vec<f64> {
    let at = |time: f64| model.knees.iter().rev().find(|(moved, _)| *moved <= time);
    (0..(model.end / BIN) as usize)
        .map(|bin| at(bin as f64 * BIN).map_or(0.0, |(_, knee)| *knee as f64))
        .collect()
}

/// Writes the panels one below the other, as `benches/soak.py` does.
fn draw(name: &str, end: f64, panels: Vec<Panel>) {
    let (left, right, top, height, gap, width) = (62.0, 14.0, 12.0, 92.0, 44.0, 860.0);
    let plot = width - left - right;
    let total = top + panels.len() as f64 * (height + gap) + 14.0;
    let mut out = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" font-family="sans-serif" font-size="11" fill="#333">
<rect width="{width}" height="{total}" fill="#fff"/>
"##
    );
    for (n, Panel(title, high, curves)) in panels.iter().enumerate() {
        let y0 = top + n as f64 * (height + gap) + 16.0;
        let above = y0 - 6.0;
        let _ = writeln!(
            out,
            r#"<text x="{left}" y="{above}" font-weight="bold">{title}</text>"#
        );
        for part in 0..=2 {
            let (value, y) = (
                high * f64::from(part) / 2.0,
                y0 + height - height * f64::from(part) / 2.0,
            );
            let (x, right, low) = (left - 6.0, left + plot, y + 4.0);
            let _ = writeln!(
                out,
                r##"<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="#ddd"/><text x="{x}" y="{low}" text-anchor="end">{value}</text>"##
            );
        }
        for second in (0..=end as u32).step_by(20) {
            let (x, y) = (left + plot * f64::from(second) / end, y0 + height + 14.0);
            let _ = writeln!(
                out,
                r#"<text x="{x:.1}" y="{y}" text-anchor="middle">{second}</text>"#
            );
        }
        for (n, Curve(name, colour, values)) in curves.iter().enumerate() {
            let point = |(bin, value): (usize, &f64)| {
                let x = left + plot * (bin as f64 + 0.5) * BIN / end;
                format!("{x:.1},{:.1}", y0 + height - height * value.min(*high) / high)
            };
            let points: Vec<String> = values.iter().enumerate().map(point).collect();
            let line = points.join(" ");
            let x = left + plot - 150.0 * (curves.len() - n) as f64 + 30.0;
            let (mark, from) = (y0 - 10.0, x - 24.0);
            let _ = writeln!(
                out,
                r#"<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.2"/><path d="M{from} {mark}h18" stroke="{colour}" stroke-width="2"/><text x="{x}" y="{above}">{name}</text>"#
            );
        }
    }
    let (x, y) = (left + plot, total - 2.0);
    let _ = writeln!(
        out,
        r#"<text x="{x}" y="{y}" text-anchor="end">seconds of model time</text></svg>"#
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(name);
    std::fs::write(&path, out).expect("the plot can be written");
}
