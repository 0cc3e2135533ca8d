//! Test double of an engine: the test server as a process, for benchmarks and for tests that kill.
//!
//! `fake_engine --port 8001 --latency-ms 20 --latency-for straggler=5000 --fault-rate 0.01 --log FILE`
//! prints its URL on stdout once it listens. Faults are a pure function of a request, of how often it was asked, and
//! of `--seed`. `GET /stats` gives the counters and the time of the first request.
#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

#[path = "../it/server.rs"]
mod server;

mod manners;
mod owner;
mod pages;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use manners::Term;
use pages::Like;
use server::{Answer, Asked, Dice, TestServer, answer_from_schema};

/// Flags.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Ignored: for command lines made for other servers.
    #[arg(long, alias = "hostname")]
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
    /// Share of requests that meet a 429, which holds up the whole engine, 0..=1.
    #[arg(long, default_value_t = 0.0)]
    rate_429: f64,
    /// Share of requests that meet a 500, 0..=1.
    #[arg(long, default_value_t = 0.0)]
    rate_500: f64,
    /// Share of requests whose connection is closed without a reply, 0..=1.
    #[arg(long, default_value_t = 0.0)]
    rate_close: f64,
    /// Share of requests that are answered with text which is no JSON, 0..=1.
    #[arg(long, default_value_t = 0.0)]
    rate_bad_json: f64,
    /// Another seed gives other faults.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Keep no book of the requests, for long runs: memory stays flat, and faults are a function of the request
    /// and of how many came before it.
    #[arg(long)]
    forget: bool,
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
    /// The process dies, without a reply, at a prompt that contains SUBSTRING.
    #[arg(long, value_name = "SUBSTRING")]
    die_at: Vec<String>,
    /// A prompt that contains SUBSTRING is never answered.
    #[arg(long, value_name = "SUBSTRING")]
    stall_at: Vec<String>,
    /// The first request is never answered, of all processes that are given this file: it does not exist before.
    #[arg(long, value_name = "FILE")]
    hang_once: Option<PathBuf>,
    /// What SIGTERM does.
    #[arg(long, value_enum, default_value_t = Term::Exit)]
    term: Term,
    /// Starts a process that outlives this one; may be repeated.
    #[arg(long, value_enum, value_name = "KIND")]
    grandchild: Vec<manners::Grandchild>,
    /// How many seconds those sleep; a number of their own, by which they can be found.
    #[arg(long, default_value = "1000")]
    nap: String,
    /// The port never opens.
    #[arg(long)]
    never_listen: bool,
    /// Connections are taken, and nothing is said on them.
    #[arg(long)]
    mute: bool,
    /// Exits with this status, after `--exit-after-ms`.
    #[arg(long, value_name = "STATUS")]
    exit: Option<i32>,
    /// When.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    exit_after_ms: u64,
    /// A line for stderr, before anything else; may be repeated.
    #[arg(long, value_name = "LINE")]
    say: Vec<String>,
    /// `/health` hangs once that many requests came.
    #[arg(long, value_name = "N")]
    health_hangs_after: Option<u64>,
    /// Has the pages of this server.
    #[arg(long, value_enum)]
    like: Option<Like>,
    /// Its counters go on while requests are in flight.
    #[arg(long)]
    counts: bool,
    /// Slots that its pages tell of.
    #[arg(long, default_value_t = 4)]
    slots: usize,
    /// Gets a line with this process' PID at its start.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// What `--version` says.
    #[arg(long)]
    version: bool,
    /// Starts another server through the library, as JSON says, and keeps it: see owner.rs.
    #[arg(long, value_name = "JSON")]
    own: Option<String>,
}

fn latency_for(text: &str) -> Result<(String, u64), String> {
    let (part, ms) = text.rsplit_once('=').ok_or("expected SUBSTRING=MS")?;
    Ok((part.to_owned(), ms.parse().map_err(|e| format!("{e}"))?))
}

impl Args {
    fn answer(&self, asked: &Asked) -> Answer {
        let mut seed = asked.digest.to_vec();
        seed.extend(asked.seen.to_le_bytes());
        seed.extend(self.seed.to_le_bytes());
        let mut dice = Dice::new(&seed);
        if let Some(fault) = self.fault(&mut dice) {
            return fault;
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

impl Args {
    /// The fault that this request meets, if any: the shares stand side by side.
    fn fault(&self, dice: &mut Dice) -> Option<Answer> {
        let mut left = dice.below(1_000_000) as f64 / 1e6;
        let mut within = |share: f64| {
            let hit = (0.0..share).contains(&left);
            left -= share;
            hit
        };
        if within(self.fault_rate) {
            return Some(match dice.below(3) {
                0 => Answer::status(500, "made to fail"),
                1 => Answer::Close,
                _ => Answer::CloseMidBody,
            });
        }
        if within(self.rate_429) {
            return Some(Answer::status(429, "too many requests"));
        }
        if within(self.rate_500) {
            return Some(Answer::status(500, "made to fail"));
        }
        if within(self.rate_close) {
            return Some(Answer::Close);
        }
        within(self.rate_bad_json).then(|| Answer::text("I would rather not say."))
    }
}

fn main() {
    let args = Args::parse_from(manners::arguments());
    if let Some(order) = &args.own {
        owner::own(order);
    }
    if args.version {
        println!("fake engine\nversion: 1.2.3 (fake)");
        return;
    }
    manners::begin(&args);
    std::thread::sleep(Duration::from_millis(args.boot_delay_ms));
    let (count, start) = (AtomicU64::new(0), Instant::now());
    let loading = move |args: &Args| start.elapsed() < Duration::from_millis(args.loading_ms);
    let (own, own_pages) = (args.clone(), args.clone());
    let page = move |path: &str, in_flight: usize, arrived: u64| {
        if loading(&own_pages) {
            return Some(Answer::status(503, "Loading model"));
        }
        pages::page(&own_pages, path, in_flight, arrived, start.elapsed())
    };
    let server = TestServer::start_with_pages(args.port, args.log.as_deref(), page, move |asked| {
        if loading(&own) {
            return Answer::status(503, "Loading model");
        }
        let said = |parts: &[String]| parts.iter().any(|part| asked.user().contains(part.as_str()));
        let many = own
            .die_after
            .is_some_and(|n| count.fetch_add(1, Ordering::Relaxed) >= n);
        if many || said(&own.die_at) {
            std::process::exit(9);
        }
        let hangs = own
            .hang_once
            .as_ref()
            .is_some_and(|file| std::fs::File::create_new(file).is_ok());
        if hangs || said(&own.stall_at) {
            return Answer::Hang;
        }
        own.answer(asked)
    });
    if args.forget {
        server.forget();
    }
    println!("{}", server.url());
    manners::until_asked_to_end(&args, || server.stats().in_flight);
}
