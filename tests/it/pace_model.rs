//! Servers in virtual time, and a gate before them that asks `Pace` and `Rate`: a small discrete-event simulator.
//!
//! Used by the tests of `pace.rs`, and by `benches/pace.rs`, which draws what it does.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use chainette::engine::broker::pace::{Done, Pace};
use chainette::engine::broker::rate::{Rate, Ticket};
use tokio::time::Instant;

/// How long one request takes where nothing else is going on, seconds.
#[derive(Clone, Copy, Debug)]
pub enum Service {
    /// The hardest to tell anything from: cv = 1.
    Exponential(f64),
    /// Mean, and σ of the logarithm.
    LogNormal(f64, f64),
    /// All the same.
    Fixed(f64),
}

impl Service {
    /// The mean.
    pub fn mean(self) -> f64 {
        let (Self::Exponential(mean) | Self::LogNormal(mean, _) | Self::Fixed(mean)) = self;
        mean
    }

    fn draw(self, random: &mut fastrand::Rng) -> f64 {
        let mut uniform = || 1.0 - random.f64();
        match self {
            Self::Exponential(mean) => -mean * uniform().ln(),
            Self::LogNormal(mean, sigma) => {
                let normal = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
                mean * (sigma * normal - sigma * sigma / 2.0).exp()
            }
            Self::Fixed(mean) => mean,
        }
    }
}

/// What kind of server it is; its knee moves.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// So many requests at a time, the others wait: throughput grows up to the knee and stays.
    Slots,
    /// Batches, as inference servers do: up to the knee all run at once, each the slower the more there are. One
    /// request alone takes its service time; with `drag` = 3 it takes (1 + 3) times as long at the knee.
    Batch { drag: f64 },
    /// More than the knee in flight are refused (429).
    Capped { retry_after: Option<f64> },
    /// A bucket of so many requests per minute, the knee, with room for `burst` of them; else 429.
    PerMinute { burst: f64, retry_after: bool },
    /// So many requests in each minute, the knee; else 429 until the next one.
    EachMinute,
}

/// A model to be run.
#[derive(Clone, Debug)]
pub struct Model {
    pub kind: Kind,
    pub service: Service,
    /// The way there and back each takes so long, seconds.
    pub wire: f64,
    /// When the knee moves, seconds, and where it goes; the first at 0.
    pub knees: Vec<(f64, usize)>,
    /// How long it runs, seconds.
    pub end: f64,
    pub seed: u64,
}

/// What happened within one [`BIN`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Bin {
    /// Work done, as a part of the most that this server can do.
    pub done: f64,
    /// Mean requests in flight.
    pub in_flight: f64,
    /// Mean limit.
    pub limit: f64,
    pub answered: u32,
    pub refused: u32,
}

/// Seconds of a bin.
pub const BIN: f64 = 0.5;

/// What a run was like.
#[derive(Clone, Debug)]
pub struct Ran {
    pub bins: Vec<Bin>,
    /// The most requests refused of those that arrived within 100 ms.
    pub largest_wave: usize,
}

impl Ran {
    fn between(&self, from: f64, to: f64) -> &[Bin] {
        &self.bins[(from / BIN) as usize..((to / BIN) as usize).min(self.bins.len())]
    }

    /// The mean of something between two times.
    pub fn mean(&self, from: f64, to: f64, of: impl Fn(&Bin) -> f64) -> f64 {
        let bins = self.between(from, to);
        bins.iter().map(of).sum::<f64>() / bins.len() as f64
    }

    /// Answers per minute.
    pub fn per_minute(&self, from: f64, to: f64) -> f64 {
        self.mean(from, to, |bin| f64::from(bin.answered)) * 60.0 / BIN
    }

    /// The part of all requests that was refused.
    pub fn refused(&self, from: f64, to: f64) -> f64 {
        let bins = self.between(from, to);
        let refused: u32 = bins.iter().map(|bin| bin.refused).sum();
        let all: u32 = bins.iter().map(|bin| bin.answered + bin.refused).sum();
        f64::from(refused) / f64::from(all.max(1))
    }
}

/// Nanoseconds of model time: they sort.
type Time = u64;

fn time(seconds: f64) -> Time {
    (seconds * 1e9) as Time
}

fn seconds(time: Time) -> f64 {
    time as f64 / 1e9
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Moves(usize),
    Arrives(usize),
    Answered(usize),
    Refused(usize, Option<Time>),
    Wake,
}

/// A request: when it was sent, the epoch of the gate then, its ticket.
#[derive(Debug)]
struct Sent {
    at: Time,
    epoch: u64,
    ticket: Option<Ticket>,
    tokens: u64,
}

struct World<'a> {
    model: &'a Model,
    random: fastrand::Rng,
    now: Time,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    order: u64,
    /// The server.
    knee: usize,
    waiting: VecDeque<usize>,
    /// Those that run: when each will have ended, on the clock of work done per request.
    running: BinaryHeap<Reverse<(Time, usize)>>,
    work: f64,
    tokens: f64,
    filled: Time,
    /// The gate.
    pace: Pace,
    rate: Rate,
    begin: Instant,
    sent: Vec<Sent>,
    in_flight: usize,
    epoch: u64,
    paused: Time,
    faults: u32,
    wake: Option<Time>,
    refusals: VecDeque<Time>,
    ran: Ran,
}

impl Model {
    /// Runs it: rows never run out.
    pub fn run(&self, pace: Pace, rate: Rate) -> Ran {
        let bins = vec![Bin::default(); (self.end / BIN).ceil() as usize];
        let knee = self.knees[0].1;
        let mut world = World {
            model: self,
            random: fastrand::Rng::with_seed(self.seed),
            now: 0,
            events: BinaryHeap::new(),
            order: 0,
            knee,
            waiting: VecDeque::new(),
            running: BinaryHeap::new(),
            work: 0.0,
            tokens: match self.kind {
                Kind::PerMinute { burst, .. } => burst,
                _ => knee as f64,
            },
            filled: 0,
            pace,
            rate,
            begin: Instant::now(),
            sent: Vec::new(),
            in_flight: 0,
            epoch: 0,
            paused: 0,
            faults: 0,
            wake: None,
            refusals: VecDeque::new(),
            ran: Ran {
                bins,
                largest_wave: 0,
            },
        };
        for (n, (at, _)) in self.knees.iter().enumerate() {
            world.at(time(*at), Event::Moves(n));
        }
        world.run();
        world.ran
    }
}

impl World<'_> {
    fn at(&mut self, time: Time, event: Event) {
        self.order += 1;
        self.events.push(Reverse((time, self.order, event)));
    }

    fn run(&mut self) {
        let end = time(self.model.end);
        loop {
            self.let_in();
            let ends = self.running.peek().map(|Reverse((work, _))| {
                let left = (seconds(*work) - self.work).max(0.0) / self.speed();
                self.now + time(left)
            });
            let next = self.events.peek().map(|Reverse((at, ..))| *at);
            let to = ends.into_iter().chain(next).min().unwrap_or(end).min(end);
            self.pass(to);
            if to >= end {
                return;
            }
            if next.is_some_and(|next| next <= to) {
                if let Some(Reverse((_, _, event))) = self.events.pop() {
                    self.happen(event);
                }
            } else if let Some(Reverse((work, id))) = self.running.pop() {
                self.work = self.work.max(seconds(work));
                self.at(self.now + time(self.model.wire), Event::Answered(id));
                self.serve();
            }
        }
    }

    /// How fast each running request gets on.
    fn speed(&self) -> f64 {
        match self.model.kind {
            Kind::Batch { drag } => 1.0 / (1.0 + drag * self.running.len() as f64 / self.knee as f64),
            _ => 1.0,
        }
    }

    /// Work per second as a part of the most; for limits per minute the answers are counted instead.
    fn part(&self) -> f64 {
        let n = self.running.len() as f64;
        match self.model.kind {
            Kind::Slots | Kind::Capped { .. } => (n / self.knee as f64).min(1.0),
            Kind::Batch { drag } => (n * self.speed() * (1.0 + drag) / self.knee as f64).min(1.0),
            Kind::PerMinute { .. } | Kind::EachMinute => 0.0,
        }
    }

    /// Lets time pass.
    fn pass(&mut self, to: Time) {
        let (part, in_flight, limit) = (self.part(), self.in_flight as f64, self.pace.limit() as f64);
        self.work += seconds(to - self.now) * self.speed();
        while self.now < to {
            let bin = (seconds(self.now) / BIN) as usize;
            let edge = time((bin + 1) as f64 * BIN).max(self.now + 1);
            let span = seconds(edge.min(to) - self.now) / BIN;
            if let Some(bin) = self.ran.bins.get_mut(bin) {
                bin.done += part * span;
                bin.in_flight += in_flight * span;
                bin.limit += limit * span;
            }
            self.now = edge.min(to);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Moves(n) => {
                self.knee = self.model.knees[n].1;
                self.serve();
            }
            Event::Arrives(id) => self.arrive(id),
            Event::Answered(id) => self.answered(id),
            Event::Refused(id, retry_after) => self.refused(id, retry_after),
            Event::Wake => self.wake = self.wake.filter(|wake| *wake > self.now),
        }
    }

    // The server

    fn arrive(&mut self, id: usize) {
        let refusal = match self.model.kind {
            Kind::Slots | Kind::Batch { .. } => None,
            Kind::Capped { retry_after } => (self.running.len() >= self.knee).then_some(retry_after),
            Kind::PerMinute { burst, retry_after } => {
                let flow = self.knee as f64 / 60.0;
                self.tokens = (self.tokens + seconds(self.now - self.filled) * flow).min(burst);
                self.filled = self.now;
                let short = self.tokens < 1.0;
                short.then(|| retry_after.then(|| (1.0 - self.tokens) / flow))
            }
            Kind::EachMinute => {
                let minute = (seconds(self.now) / 60.0).floor() * 60.0;
                if seconds(self.filled) < minute {
                    self.tokens = self.knee as f64;
                }
                self.filled = self.now;
                (self.tokens < 1.0).then(|| Some(minute + 60.0 - seconds(self.now)))
            }
        };
        if let Some(retry_after) = refusal {
            self.refusals.push_back(self.now);
            while self.refusals.front().is_some_and(|at| at + time(0.1) < self.now) {
                self.refusals.pop_front();
            }
            self.ran.largest_wave = self.ran.largest_wave.max(self.refusals.len());
            // Whole seconds, as most servers say it.
            let retry_after = retry_after.map(|wait| time(wait.ceil()));
            return self.at(self.now + time(self.model.wire), Event::Refused(id, retry_after));
        }
        self.tokens -= 1.0;
        self.waiting.push_back(id);
        self.serve();
    }

    fn serve(&mut self) {
        let room = match self.model.kind {
            Kind::Slots | Kind::Batch { .. } => self.knee,
            _ => usize::MAX,
        };
        while self.running.len() < room {
            let Some(id) = self.waiting.pop_front() else {
                return;
            };
            let service = self.model.service.draw(&mut self.random);
            // Forty tokens on the average, and as many more as the request takes longer.
            self.sent[id].tokens = (40.0 * service / self.model.service.mean()) as u64;
            let work = self.work + service;
            self.running.push(Reverse((time(work), id)));
        }
    }

    // The gate, as `src/engine/broker/gate.rs` goes about it

    fn instant(&self) -> Instant {
        self.begin + Duration::from_nanos(self.now)
    }

    fn let_in(&mut self) {
        while self.in_flight < self.pace.limit() {
            let now = self.instant();
            let ahead = |at: Instant| u64::try_from((at - self.begin).as_nanos()).unwrap_or(u64::MAX);
            let later = if self.now < self.paused {
                Some(self.paused)
            } else if let Some(at) = self.pace.release_at(now) {
                Some(ahead(at))
            } else {
                match self.rate.admit(now, self.rate.estimate()) {
                    Err(at) => Some(ahead(at)),
                    Ok(ticket) => {
                        self.in_flight += 1;
                        self.pace.released(now, self.in_flight);
                        self.sent.push(Sent {
                            at: self.now,
                            epoch: self.epoch,
                            ticket: Some(ticket),
                            tokens: 0,
                        });
                        self.at(
                            self.now + time(self.model.wire),
                            Event::Arrives(self.sent.len() - 1),
                        );
                        None
                    }
                }
            };
            if let Some(later) = later {
                // Timers tick in milliseconds.
                let tick = later.max(self.now + 1).div_ceil(1_000_000) * 1_000_000;
                if self.wake.is_none_or(|wake| tick < wake) {
                    self.wake = Some(tick);
                    self.at(tick, Event::Wake);
                }
                return;
            }
        }
    }

    fn bin(&mut self) -> &mut Bin {
        let last = self.ran.bins.len() - 1;
        &mut self.ran.bins[((seconds(self.now) / BIN) as usize).min(last)]
    }

    fn answered(&mut self, id: usize) {
        self.bin().answered += 1;
        let now = self.instant();
        let sent = &mut self.sent[id];
        let took = Duration::from_nanos(self.now - sent.at);
        let tokens = sent.tokens;
        let same = sent.epoch == self.epoch;
        if let Some(ticket) = sent.ticket.take() {
            self.rate.settle(ticket, now, tokens);
        }
        let done = Done {
            took,
            tokens,
            queued: true,
            in_flight: self.in_flight,
        };
        self.pace.finished(now, done);
        self.in_flight -= 1;
        if same {
            self.faults = 0;
            self.paused = 0;
        }
    }

    fn refused(&mut self, id: usize, retry_after: Option<Time>) {
        self.bin().refused += 1;
        self.in_flight -= 1;
        if self.sent[id].epoch != self.epoch {
            if let Some(wait) = retry_after {
                self.paused = self.paused.max(self.now + wait);
            }
            return;
        }
        let backoff = 0.5 * 2_f64.powi(self.faults.min(10).cast_signed());
        let wait = retry_after.unwrap_or(time(backoff.min(30.0) * (0.8 + 0.4 * self.random.f64())));
        self.epoch += 1;
        self.faults += 1;
        self.paused = self.now + wait;
        let now = self.instant();
        self.pace.pushed_back(now, retry_after.map(Duration::from_nanos));
    }
}
