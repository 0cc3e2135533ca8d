//! Test double of an engine: the test server as a process, for benchmarks and for tests that kill.
//!
//! `fake_engine --port 8001 --latency-ms 20 --latency-for straggler=5000 --fault-rate 0.01 --log FILE`
//! prints its URL on stdout once it listens. Faults are a pure function of a request and of how often it was asked.
#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr
)]

#[path = "../it/server.rs"]
mod server;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use server::{Answer, Asked, Dice, TestServer, answer_from_schema};

/// Flags.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Ignored: for command lines made for other servers.
    #[arg(long)]
    host: Option<String>,
    /// Every reply takes this long.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// A prompt that contains SUBSTRING takes MS milliseconds.
    #[arg(long, value_name = "SUBSTRING=MS", value_parser = latency_for)]
    latency_for: Vec<(String, u64)>,
    /// Share of requests that meet a 500 or a broken connection, 0..=1.
    #[arg(long, default_value_t = 0.0)]
    fault_rate: f64,
    /// Gets `A digest` at an arrival and `D digest` at an answer.
    #[arg(long)]
    log: Option<PathBuf>,
    /// The port opens only after this time.
    #[arg(long, default_value_t = 0)]
    boot_delay_ms: u64,
    /// After that, 503 for this long.
    #[arg(long, default_value_t = 0)]
    loading_ms: u64,
    /// Every second, the requests in flight on stderr.
    #[arg(long)]
    watch: bool,
    /// The process dies, without a reply, at request N + 1.
    #[arg(long)]
    die_after: Option<u64>,
}

fn latency_for(text: &str) -> Result<(String, u64), String> {
    let (part, ms) = text.rsplit_once('=').ok_or("expected SUBSTRING=MS")?;
    Ok((part.to_owned(), ms.parse().map_err(|e| format!("{e}"))?))
}

impl Args {
    fn answer(&self, asked: &Asked) -> Answer {
        let mut seed = asked.digest.to_vec();
        seed.extend(asked.seen.to_le_bytes());
        let mut dice = Dice::new(&seed);
        if self.fault_rate > 0.0 && (dice.below(1_000_000) as f64) < self.fault_rate * 1e6 {
            return match dice.below(3) {
                0 => Answer::status(500, "made to fail"),
                1 => Answer::Close,
                _ => Answer::CloseMidBody,
            };
        }
        let special = self
            .latency_for
            .iter()
            .find(|(part, _)| asked.user().contains(part.as_str()));
        let answer = answer_from_schema(asked);
        match special.map_or(self.latency_ms, |(_, ms)| *ms) {
            0 => answer,
            ms => answer.after(Duration::from_millis(ms)),
        }
    }
}

fn main() {
    let args = Args::parse();
    std::thread::sleep(Duration::from_millis(args.boot_delay_ms));
    let (count, start) = (AtomicU64::new(0), Instant::now());
    let own = args.clone();
    let server = TestServer::start_on(args.port, args.log.as_deref(), move |asked| {
        if start.elapsed() < Duration::from_millis(own.loading_ms) {
            return Answer::status(503, "Loading model");
        }
        if own
            .die_after
            .is_some_and(|n| count.fetch_add(1, Ordering::Relaxed) >= n)
        {
            std::process::exit(9);
        }
        own.answer(asked)
    });
    println!("{}", server.url());
    loop {
        std::thread::sleep(Duration::from_secs(1));
        if args.watch {
            eprintln!("{}", server.stats().in_flight);
        }
    }
}
