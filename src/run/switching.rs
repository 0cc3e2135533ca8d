//! Rows in turns, where the engines of a chain do not all fit together: those that need an engine which is not loaded are
//! parked on disk, and are led again from their start when it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::RunError;
use super::committer::Permits;
use super::executor::{Going, Intake, Read, Starter};
use super::spill::{ParkedRow, Spill, Spilled};
use crate::engine::broker::stage::{Feeding, Flow, Next, Stage};
use crate::failpoint;
use crate::node::Arrival;
use crate::node::memory::Memory;
use crate::plan::EngineIx;
use crate::row::Record;
use crate::source::{Position, RawRow};

/// A stream from which nothing comes for so long is not waited for while rows are parked.
const PATIENCE: Duration = Duration::from_secs(60);
/// Parked rows that set out together at most.
const TOGETHER: usize = 64;

/// Which engines are loaded, and the rows that wait for others.
#[derive(Debug)]
pub(super) struct Staging {
    stage: Arc<Stage>,
    spill: Spill,
    /// The engine that a new row meets first.
    first: EngineIx,
    /// Rows on their way.
    in_flight: AtomicUsize,
    /// One of them ended or was parked.
    changed: Notify,
}

/// Counts a row among those on their way until it is dropped.
pub(super) struct Busy(Arc<Staging>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

/// What it takes to park a row and lead it again.
pub(super) struct Held {
    ordinal: u64,
    file: Option<Arc<str>>,
    line: u64,
    record: Record,
    /// What its walk leaves for the next.
    pub(super) memory: Arc<Memory>,
}

impl Held {
    /// Of a row that is one: others come to no engine.
    pub(super) fn new(row: &RawRow, arrival: &Arrival, memory: Arc<Memory>) -> Option<Self> {
        Some(Self {
            ordinal: row.ordinal,
            file: row.file.clone(),
            line: row.line,
            record: arrival.record()?.clone(),
            memory,
        })
    }
}

impl Staging {
    /// Starts with the engine that rows meet first.
    pub(super) fn new(stage: Arc<Stage>, first: EngineIx, spill: Spill) -> Self {
        stage.begin(first);
        Self {
            stage,
            spill,
            first,
            in_flight: AtomicUsize::new(0),
            changed: Notify::new(),
        }
    }

    /// So many rows set out; each is to be [`Staging::busy`] until it ends or is parked.
    pub(super) fn set_out(&self, rows: usize) {
        self.in_flight.fetch_add(rows, Ordering::AcqRel);
    }

    /// One of the rows that set out.
    pub(super) fn busy(self: Arc<Self>) -> Busy {
        Busy(self)
    }

    /// Parks a row until an engine is loaded.
    pub(super) fn park(&self, engine: EngineIx, mut going: Going) -> Result<(), RunError> {
        let Some(held) = going.held.take() else {
            return Ok(());
        };
        let (seq, part) = going.place();
        let row = ParkedRow {
            seq,
            part,
            ordinal: held.ordinal,
            file: held.file,
            line: held.line,
            text: held.record.text().as_bytes().to_vec(),
            memory: held.memory,
        };
        if self.spill.park(engine, &row)? {
            self.stage.parked(engine);
        }
        Ok(())
    }

    /// Gives the disk space back; what is parked is not done.
    pub(super) fn close(&self) {
        self.spill.close();
    }

    /// The stage's decision on how things are.
    fn next(&self, feeding: Feeding) -> Next {
        // In this order: a row is parked before it stops being on its way.
        let in_flight = self.in_flight.load(Ordering::Acquire);
        self.stage.next(&Flow {
            in_flight,
            has_room: self.spill.has_room(in_flight),
            feeding,
            first: self.first,
        })
    }
}

impl Intake {
    /// Reads and starts chunks and parked rows, set of engines by set of engines, until all are done or the run is told to
    /// stop.
    pub(super) async fn run_in_turns(
        &mut self,
        staging: &Arc<Staging>,
        read: &mut Read,
    ) -> Result<(), RunError> {
        let stop = self.starter.halt.stop.clone();
        let mut feeding = Feeding::More;
        let mut switches = staging.stage.switches();
        loop {
            let next = staging.next(feeding);
            if staging.stage.switches() != switches {
                switches = staging.stage.switches();
                failpoint::hit("stage.switched").map_err(RunError::io(staging.spill.dir()))?;
            }
            match next {
                Next::End => return Ok(()),
                Next::Resume => {
                    let most = (self.rows_in_flight / 4).clamp(1, TOGETHER);
                    let rows = staging.spill.take(&staging.stage.loaded(), most);
                    if rows.is_empty() {
                        let message = "parked rows are gone".into();
                        return Err(RunError::Bug { message });
                    }
                    let Some(permits) = self.permits(rows.iter().map(Spilled::len)).await else {
                        return Ok(());
                    };
                    staging.set_out(rows.len());
                    for row in &rows {
                        staging.stage.unparked(row.engine);
                    }
                    let (starter, staging) = (self.starter.clone(), staging.clone());
                    self.starter.cpu.spawn(move || {
                        starter.guarded(|| starter.resume(&staging, &rows, permits));
                    });
                }
                Next::Wait => tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    () = staging.changed.notified() => {}
                },
                Next::Read => {
                    let is_quiet = staging.in_flight.load(Ordering::Acquire) == 0;
                    let chunk = tokio::select! {
                        biased;
                        () = stop.cancelled() => return Ok(()),
                        chunk = read.recv() => self.received(chunk)?,
                        () = staging.changed.notified() => continue,
                        () = tokio::time::sleep(failpoint::patience(PATIENCE)), if is_quiet => {
                            feeding = Feeding::Idle;
                            continue;
                        }
                    };
                    feeding = if chunk.is_some() {
                        Feeding::More
                    } else {
                        Feeding::Ended
                    };
                    if let Some(chunk) = chunk {
                        staging.stage.enter(staging.first);
                        if self.set_out(chunk).await.is_break() {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

impl Starter {
    /// Leads parked rows again from their start.
    fn resume(self: &Arc<Self>, staging: &Arc<Staging>, rows: &[Spilled], mut permits: Permits) {
        for spilled in rows {
            let busy = staging.clone().busy();
            let row = match staging.spill.fetch(spilled) {
                Ok(Some(row)) => row,
                // The run is over.
                Ok(None) => return,
                Err(error) => return self.fail(error),
            };
            let mut going = Going::new(row.seq, row.part, permits.split(spilled.len()));
            let raw = RawRow {
                ordinal: row.ordinal,
                file: row.file,
                line: row.line,
                span: 0..row.text.len(),
                problem: None,
                // The committer was told when its chunk set out.
                end: Position::default(),
            };
            let arrival = self.walker.arrival(&raw, &row.text);
            going.busy = Some(busy);
            going.held = Held::new(&raw, &arrival, row.memory);
            self.lead(arrival, going);
        }
    }
}
