//! The loop: from a plan and an input to a finished OUT.

mod checkpoint;
mod clean;
mod committer;
mod config;
mod counting;
mod counts;
mod dispatcher;
mod error;
mod executor;
mod generation;
mod identity;
mod ledger;
mod limits;
mod lock;
mod metadata;
mod outcomes;
mod outdir;
mod parking;
mod session;
mod spill;
mod switching;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

pub use checkpoint::Checkpoint;
pub use clean::{Cleaned, clean};
pub use config::RunConfig;
pub use counts::{Counts, NodeCounts, Times};
pub use dispatcher::{Dispatcher, Interrupted, Moment, Signals, StatusLine};
pub use error::RunError;
pub use executor::Halt;
pub(crate) use generation::SWAP;
pub use identity::Identity;
pub(crate) use identity::VERSION as FILES_VERSION;
pub use limits::ErrorLimit;
pub(crate) use lock::is_locked;
pub use metadata::rfc3339;
pub(crate) use metadata::seals;
pub(crate) use outcomes::{Digest as OutcomesDigest, Outcomes, Reader as OutcomesReader, Unread};
pub use outdir::{Existing, OutDir};
pub use spill::DEFAULT_BYTES as DEFAULT_SPILL;
pub use watch::Tracker;

use crate::clock::Clock;
use crate::engine::Stop;
use crate::engine::broker::Broker;
use crate::engine::supervise::{Policy, Supervisor};
use crate::event::{Event, EventSender, Resumption, RunState, RunStats};
use crate::node::Workers;
use crate::plan::Plan;
use crate::sink::{Layout, SinkError, StreamWriter};
use crate::source::SourceError;
use checkpoint::write_json;
use counting::Counting;
use generation::Reuse;
use ledger::{Ledger, Needed};
use metadata::{Timings, metadata};
use outdir::Wanted;
use session::{Ended, Session};

/// Runs a plan with its own engines and nobody watching; the library's short way.
///
/// # Errors
/// Nothing was run: OUT is another run's, an engine cannot be set up, the input cannot be read.
pub fn run_to_end(config: RunConfig) -> Result<Outcome, RunError> {
    let events = EventSender::none();
    let plan = &config.plan;
    let broker = Broker::planned(&plan.engines, &plan.resources, events.clone()).map_err(RunError::Setup)?;
    run(config, Arc::new(broker), &events, &StatusLine::default())
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The sums.
    pub stats: RunStats,
    /// By node, branch and kind.
    pub counts: Counts,
    /// How long it took.
    pub times: Times,
    /// It was finished before; nothing was run.
    pub already_finished: bool,
    /// Rows that were done when it stopped but stand in a chunk that was not; the next run writes them.
    pub unwritten: u64,
    /// Why it stopped early.
    pub stopped: Option<RunError>,
}

impl Outcome {
    /// The sums of a run that took every row; an interrupted or stopped run is an error, resumable.
    pub fn into_result(self) -> Result<RunStats, RunError> {
        match (self.stopped, self.stats.state) {
            (Some(error), _) => Err(error),
            (None, RunState::Interrupted) => Err(RunError::Stop(Stop::Interrupted)),
            (None, _) => Ok(self.stats),
        }
    }
}

/// Runs a plan. An `Err` means that nothing was run.
pub fn run(
    config: RunConfig,
    broker: Arc<Broker>,
    events: &EventSender,
    status: &StatusLine,
) -> Result<Outcome, RunError> {
    let started = Instant::now();
    let began = Clock::now();
    let mut timings = Timings {
        started: rfc3339(began),
        ..Timings::default()
    };
    config.format.check()?;
    if config.max_rows == 0 {
        return Err(RunError::Zero { field: "max_rows" });
    }
    let identity = Identity::of(&config)?;
    // Before anything is written: a function that cannot be loaded is bad usage.
    let wanted = Wanted {
        existing: config.existing,
        limit: config.limit,
        retry: config.retry_errors,
        asks: config.plan.asks(&config.plan.main.0),
    };
    let workers = match outdir::finished(&config.out, wanted) {
        true => None,
        false => Some(Workers::start(&config.plan, events)?),
    };
    let mut out = OutDir::open(&config.out, identity, wanted)?;
    clear(&out, events);
    let plan = config.plan.clone();
    let found = out.checkpoint.take();
    if let Some(done) = found
        .as_ref()
        .filter(|checkpoint| is_done(checkpoint, config.limit))
    {
        if out.reuse.next {
            // Killed between its last checkpoint and the swap.
            finish_next(&config, &out, done, &mut timings)?;
        }
        read_again(&config, done, &out.identity)?;
        // Killed between the last checkpoint and the last file?
        let path = config.out.join("metadata.json");
        let written: Option<Value> = checkpoint::read_json(&path)?;
        let told = written.is_some_and(|metadata| metadata.get("state").is_some_and(|s| s == "finished"));
        if !told {
            timings.finished = Some(rfc3339(Clock::now().max(began)));
            write_json(
                &out.private,
                &path,
                &metadata(&config, &out, done, &timings)?,
                true,
            )?;
        }
        let graph = config.out.join("graph.json");
        if !graph.exists() {
            write_json(&out.private, &graph, &config.graph, true)?;
        }
        return Ok(Outcome {
            stats: RunStats {
                rows_resumed: done.counts.rows_in,
                ..stats(&done.counts, RunState::Finished, started)
            },
            counts: done.counts.clone(),
            times: done.times.clone(),
            already_finished: told,
            unwritten: 0,
            stopped: None,
        });
    }
    let workers = match workers {
        Some(workers) => workers,
        None => Workers::start(&plan, events)?,
    };
    let resumed = found.is_some();
    let mut checkpoint = match found {
        Some(found) => found,
        None => fresh(&plan, &out)?,
    };
    // Before anything is touched: what cannot be read is known now.
    let mut source = config.input.open(checkpoint.position, config.limit)?;
    if checkpoint.finished {
        // Its closed shards are about to be opened again: from here on it is not finished.
        checkpoint.finished = false;
        write_json(
            &out.private,
            &out.private_base().join("checkpoint.json"),
            &checkpoint,
            false,
        )?;
    }

    let mut layout = Layout {
        out: out.base.clone(),
        nodes: plan
            .nodes
            .iter()
            .map(|node| node.yield_output.then(|| node.id.clone()))
            .collect(),
        flattened: config.flattened,
        max_rows: config.max_rows,
        format: config.format.clone(),
    };
    let writer = match StreamWriter::resume(&layout, &plan, &checkpoint.sinks) {
        // Told to keep what fits: the answers do.
        Err(SinkError::Altered { .. }) if config.existing == Existing::Keep => {
            out.write_anew(wanted)?;
            checkpoint = fresh(&plan, &out)?;
            source = config.input.open(checkpoint.position, config.limit)?;
            layout.out.clone_from(&out.base);
            StreamWriter::resume(&layout, &plan, &checkpoint.sinks)?
        }
        writer => writer?,
    };
    let outcomes = outcomes::open(&out.private_base().join("outcomes"), checkpoint.outcomes)?;
    let ledger = if (config.ledger || out.reuse.next) && wanted.asks {
        let needed = Needed {
            first: checkpoint.answers_from,
            ordinal: checkpoint.position.ordinal,
            edited: out.reuse.edited,
            again: out.reuse.again,
            engines: identity::engines_by_step(&plan),
        };
        Some(Arc::new(Ledger::open(&out.private.join("answers"), needed)?))
    } else {
        None
    };
    write_json(&out.private, &out.base.join("graph.json"), &config.graph, true)?;
    let metadata_path = out.base.join("metadata.json");
    write_json(
        &out.private,
        &metadata_path,
        &metadata(&config, &out, &checkpoint, &timings)?,
        true,
    )?;

    let run_id = out.identity.run_id.clone();
    let counted = config.input.total();
    let total = at_most(config.limit, counted);
    let counting = Counting::start(&config, counted, events);
    events.send(Event::RunStarted {
        run_id,
        chain: plan.name.clone(),
        total,
    });
    let answers = ledger.as_ref().map_or(0, |ledger| ledger.len());
    if resumed || answers > 0 {
        events.send(Event::Resumed {
            rows: checkpoint.position.ordinal,
            answers,
            // Killed before it could say how many.
            in_flight: ledger.is_some().then_some(if resumed {
                checkpoint.in_flight
            } else {
                broker.load().iter().map(|engine| engine.limit as u64).sum()
            }),
            reason: match (resumed, out.retried, out.reuse.edited) {
                (false, Some(failures), _) => Resumption::Retry { failures },
                (false, None, Some(_)) => Resumption::Edited,
                _ => Resumption::Same,
            },
        });
    }
    let rows_resumed = checkpoint.counts.rows_in;
    let seconds_before = checkpoint.times.seconds;
    let answers = ledger.clone();
    let stage = broker.stage().cloned();
    let engines = broker.clone();
    let session = Session {
        config: &config,
        broker,
        events,
        status,
        source,
        workers,
        writer,
        outcomes,
        ledger,
        checkpoint,
        out: &out,
        started,
    };
    let Ended {
        mut checkpoint,
        result,
        interrupted,
        unwritten,
    } = session.run()?;
    drop(counting);

    let (state, stopped) = match result {
        // A run that was done when the signal came is done.
        Ok(()) if checkpoint.finished => (RunState::Finished, None),
        Ok(()) => (RunState::Interrupted, None),
        Err(error) if interrupted => (RunState::Interrupted, Some(error)),
        Err(error) => (RunState::Stopped, Some(error)),
    };
    if state == RunState::Finished {
        for (node, counts) in &checkpoint.counts.nodes {
            let (node, total) = (node.clone(), counts.rows);
            events.send(Event::StepTotal {
                node,
                total,
                estimate: false,
            });
        }
    }
    let mut stats = stats(&checkpoint.counts, state, started);
    stats.rows_resumed = rows_resumed;
    stats.engines = engines.paces();
    stats.switches = stage.map_or(0, |stage| stage.switches());
    stats.answers_reused = answers.as_ref().map_or(0, |ledger| ledger.reused());
    drop(answers);
    checkpoint.times.seconds = seconds_before + stats.seconds;
    if state == RunState::Finished {
        timings.finished = Some(rfc3339(Clock::now().max(began)));
        timings.seconds = Some(stats.seconds);
        write_json(
            &out.private,
            &metadata_path,
            &metadata(&config, &out, &checkpoint, &timings)?,
            true,
        )?;
        if out.reuse.next {
            generation::swap(&out.path, &out.private)?;
        } else if out.reuse.again.is_some() {
            // What fails from now on was not tried again.
            Reuse {
                again: None,
                ..out.reuse
            }
            .write(&out.private)?;
        }
    }
    Ok(Outcome {
        stats,
        counts: checkpoint.counts,
        times: checkpoint.times,
        already_finished: false,
        unwritten,
        stopped,
    })
}

/// Nothing committed yet. Vectors are as long as those of the outputs that stand.
fn fresh(plan: &Plan, out: &OutDir) -> Result<Checkpoint, RunError> {
    let standing: Option<Checkpoint> = match out.reuse.next {
        true => checkpoint::read_json(&out.private.join("checkpoint.json"))?,
        false => None,
    };
    Ok(Checkpoint {
        counts: Counts::new(plan),
        dimensions: standing.map(|standing| standing.dimensions).unwrap_or_default(),
        ..Checkpoint::default()
    })
}

/// Ends and removes what a killed run may have left: servers whose guards were killed too, rows that were parked.
fn clear(out: &OutDir, events: &EventSender) {
    let _absent = std::fs::remove_dir_all(out.private_base().join("spill"));
    let engines = out.private.join("engines");
    if !engines.exists() {
        return;
    }
    if let Err(error) = Supervisor::new(engines, Policy::default(), events.clone()).sweep() {
        events.send(Event::Warning {
            message: format!("what a killed run may have left of its engines cannot be looked at: {error}"),
        });
    }
}

/// Completes a next generation whose rows are all done, and puts it in place.
fn finish_next(
    config: &RunConfig,
    out: &OutDir,
    done: &Checkpoint,
    timings: &mut Timings,
) -> Result<(), RunError> {
    timings.finished = Some(rfc3339(Clock::now()));
    let metadata = metadata(config, out, done, timings)?;
    write_json(&out.private, &out.base.join("metadata.json"), &metadata, true)?;
    generation::swap(&out.path, &out.private)
}

/// Rows to do: those there are, or those asked for; both may be unknown.
fn at_most(limit: Option<u64>, rows: Option<u64>) -> Option<u64> {
    [limit, rows].into_iter().flatten().min()
}

/// Looks whether the stream of a finished run is the same; other inputs were recognised before.
fn read_again(config: &RunConfig, done: &Checkpoint, identity: &Identity) -> Result<(), RunError> {
    if !identity.input.iter().any(|of| of.stream) {
        return Ok(());
    }
    let mut source = config.input.open(done.position, None)?;
    if done.limit.is_none() && source.next_chunk(1, 1)?.is_some() {
        return Err(SourceError::goes_on(done.position.ordinal).into());
    }
    Ok(())
}

/// A finished run is done unless a larger `--limit` asks for more.
fn is_done(checkpoint: &Checkpoint, limit: Option<u64>) -> bool {
    let more = match (checkpoint.limit, limit) {
        (None, _) => false,
        // The input may have ended before the old limit; reading on then finds nothing, which is fine.
        (Some(_), None) => true,
        (Some(old), Some(new)) => new > old,
    };
    checkpoint.finished && !more
}

fn stats(counts: &Counts, state: RunState, started: Instant) -> RunStats {
    RunStats {
        state,
        rows_in: counts.rows_in,
        rows_out: counts.rows_out,
        rows_failed: counts.errors,
        rows_resumed: 0,
        answers_reused: 0,
        switches: 0,
        engines: Vec::new(),
        seconds: started.elapsed().as_secs_f64(),
        usage: counts.usage(),
    }
}
