//! From raw input rows to walks through the plan.

use std::sync::Arc;

use futures::FutureExt;

use crate::engine::Stop;
use crate::plan::Plan;
use crate::row::{ErrorKind, Record, RowError, RowId};
use crate::source::{Chunk, RawRow};

use super::lines;
use super::memory::Memory;
use super::output::{Output, RowFate};
use super::walk::{Origin, Walker, side_by_side};

/// A row that is ready to go, or failed already.
#[derive(Debug)]
pub struct Arrival {
    pub(super) id: RowId,
    pub(super) origin: Origin,
    pub(super) record: Result<Record, String>,
    raw: Vec<u8>,
}

impl Arrival {
    /// The row, unless it is none.
    pub(crate) fn record(&self) -> Option<&Record> {
        self.record.as_ref().ok()
    }

    /// The row's id, and the row if it can go.
    pub(super) fn checked(self, plan: &Plan) -> (RowId, Result<Record, RowError>) {
        let record = valid(plan, &self.record).cloned();
        let invalid = |message| RowError::new(ErrorKind::InvalidInput, message);
        (self.id, record.map_err(invalid))
    }
}

/// The record of a row that may start; else why it is `invalid_input`.
pub(super) fn valid<'r>(plan: &Plan, record: &'r Result<Record, String>) -> Result<&'r Record, String> {
    let record = record.as_ref().map_err(Clone::clone)?;
    if let Some(model) = &plan.input_model {
        let checked = model.validate(&record.to_json());
        checked.map_err(|message| format!("does not match input_model: {message}"))?;
    }
    Ok(record)
}

impl Walker {
    /// Reads a raw row.
    pub fn arrival(&self, row: &RawRow, data: &[u8]) -> Arrival {
        let bytes = data.get(row.span.clone()).unwrap_or_default();
        let record = if let Some(problem) = &row.problem {
            Err(problem.to_string())
        } else {
            match std::str::from_utf8(bytes) {
                Err(error) => Err(format!("not valid UTF-8 at byte {}", error.valid_up_to() + 1)),
                Ok(text) => Record::parse(text).map_err(|error| error.to_string()),
            }
        };
        let raw = if record.is_err() {
            bytes.get(..bytes.len().min(8192)).unwrap_or_default().to_vec()
        } else {
            vec![]
        };
        let origin = Origin {
            file: row.file.clone(),
            line: row.line,
        };
        Arrival {
            id: RowId::root(row.ordinal),
            origin,
            record,
            raw,
        }
    }

    /// Leads one row to its end.
    pub async fn arrived(&self, row: Arrival, out: &mut Output) -> Result<(), Stop> {
        self.arrived_with(row, None, out).await
    }

    /// As [`Walker::arrived`], for a row that may have to wait for an engine: `memory` is for its next walk.
    pub(crate) async fn arrived_with(
        &self,
        row: Arrival,
        memory: Option<Arc<Memory>>,
        out: &mut Output,
    ) -> Result<(), Stop> {
        let Arrival {
            id,
            origin,
            record,
            raw,
        } = row;
        let message = match valid(&self.plan, &record) {
            Ok(record) => return self.row(id, record.clone(), &origin, memory, out).await,
            Err(message) => message,
        };
        let shown = record.as_ref().map_err(|_| raw.as_slice());
        out.input_row(RowFate::Invalid);
        out.failure(None, ErrorKind::InvalidInput, &message);
        lines::bad_input(&mut out.errors, &id, &origin, &message, shown);
        Ok(())
    }

    /// True when rows ask engines, so that each must be led on its own.
    pub fn asks(&self) -> bool {
        self.one_by_one
    }

    /// True when rows wait for processes, though not for engines: a chunk's rows then go out together.
    pub fn waits(&self) -> bool {
        self.plan.waits(&self.plan.main.0)
    }

    /// Leads all rows of a chunk to their ends at once; only for plans in which no row waits.
    pub fn chunk(&self, chunk: &Chunk) -> Option<Result<Output, Stop>> {
        async {
            let mut out = self.output();
            for row in &chunk.rows {
                self.arrived(self.arrival(row, &chunk.data), &mut out).await?;
            }
            self.live.add(&out.tally);
            Ok(out)
        }
        .now_or_never()
    }

    /// Leads the rows of a chunk to their ends side by side.
    pub async fn together(&self, arrivals: Vec<Arrival>) -> Result<Output, Stop> {
        let walks = arrivals.into_iter().map(|arrival| async move {
            let mut out = self.output();
            self.arrived(arrival, &mut out).await?;
            Ok::<_, Stop>(out)
        });
        let mut all = self.output();
        for out in side_by_side(walks).await? {
            all.append(out);
        }
        Ok(all)
    }
}
