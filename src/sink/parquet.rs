//! Parquet: typed columns, made from the JSON lines of a full shard.

mod declared;
mod encode;
mod infer;
mod kind;
mod number;
mod read;
mod values;

use std::borrow::Cow;
use std::io::Write;
use std::sync::atomic::AtomicBool;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SinkError;
use super::encoder::{Encoder, LineReader, Rescued};
use crate::plan::Plan;
use crate::plan::explain::{flattened_names, flattened_schema, record_schema};
use crate::row::{raw_fields, unquoted};
use infer::Guess;
use kind::Column;
pub(crate) use read::ShardRows;

/// Where values go that do not fit, and fields that came too late: a JSON object of column → value.
const RESCUED: &str = "_rescued";
/// The entry of a file's metadata with the paths of all parts that hold JSON text.
const JSON_TEXT: &str = "chainette.json_text";
/// Rows that decide the types of what no model declares.
pub(super) const TYPED_BY: u64 = 10_000;
/// Columns that are found in the first rows; further ones are rescued.
const MAX_COLUMNS: usize = 2_000;

/// The columns of a folder, but `row_id` and `_rescued`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Columns(Vec<Column>);

/// A folder of Parquet files.
#[derive(Clone, Debug)]
pub(super) struct Table {
    chain: String,
    folder: String,
    declared: IndexMap<String, Guess>,
    /// What stands before the first dot of a column, in order; empty where columns have no such parts.
    prefixes: Vec<String>,
    /// What a node's own field `_rescued` is called.
    own_rescued: String,
}

impl Table {
    /// The outputs of every node.
    pub(super) fn of_nodes(plan: &Plan) -> Vec<Self> {
        let nodes = plan.nodes.iter();
        nodes
            .map(|node| Self::new(plan, &node.id, &record_schema(node), Vec::new()))
            .collect()
    }

    /// The flattened records.
    pub(super) fn flattened(plan: &Plan) -> Self {
        let names = flattened_names(plan).into_iter().map(str::to_owned).collect();
        Self::new(plan, "flattened", &flattened_schema(plan), names)
    }

    fn new(plan: &Plan, folder: &str, schema: &Value, prefixes: Vec<String>) -> Self {
        let mut table = Self {
            chain: plan.name.clone(),
            folder: folder.to_owned(),
            declared: IndexMap::new(),
            own_rescued: format!("{folder}.{RESCUED}"),
            prefixes,
        };
        table.declared = declared::fields(schema)
            .into_iter()
            .filter(|(name, _)| name != "row_id")
            .map(|(name, guess)| (table.column(&name).to_owned(), guess))
            .collect();
        table
    }

    /// The column of a field.
    fn column<'a>(&'a self, field: &'a str) -> &'a str {
        if field == RESCUED {
            &self.own_rescued
        } else {
            field
        }
    }

    /// The fields of a line with their columns, but its `row_id`.
    fn fields<'a>(&'a self, line: &'a str) -> impl Iterator<Item = (Cow<'a, str>, &'a str)> {
        raw_fields(line).skip(1).map(|(key, raw)| {
            let name = unquoted(key);
            let name = if name == RESCUED {
                self.own_rescued.as_str().into()
            } else {
                name
            };
            (name, raw)
        })
    }

    fn columns(&self, first: &mut LineReader) -> Result<Columns, SinkError> {
        let mut guesses = self.declared.clone();
        let most = guesses.len().max(MAX_COLUMNS);
        let mut rows = 0;
        while rows < TYPED_BY
            && let Some(line) = first.next_line()?
        {
            rows += 1;
            for (name, raw) in self.fields(line) {
                let more = guesses.len() < most;
                if let Some(guess) = guesses.get_mut(&*name) {
                    guess.see(raw);
                } else if more {
                    guesses.entry(name.into_owned()).or_default().see(raw);
                }
            }
        }
        let mut columns = infer::columns(guesses);
        let place = |name: &str| {
            let prefix = name.split_once('.').map_or(name, |(prefix, _)| prefix);
            self.prefixes.iter().position(|known| known == prefix)
        };
        // Stable: declared columns first, then the others as they came.
        columns.sort_by_cached_key(|column| place(&column.name));
        Ok(Columns(columns))
    }
}

impl Encoder for Table {
    fn extension(&self) -> &str {
        "parquet"
    }

    fn decided_by(&self) -> u64 {
        TYPED_BY
    }

    fn layout(&self, first: &mut LineReader) -> Result<Value, SinkError> {
        let columns = self.columns(first)?;
        serde_json::to_value(columns).map_err(|error| self.bug(&error))
    }

    fn encode(
        &self,
        layout: &Value,
        _index: usize,
        lines: &mut LineReader,
        out: &mut (dyn Write + Send),
        stop: &AtomicBool,
    ) -> Result<Option<Vec<Rescued>>, SinkError> {
        let columns = Columns::deserialize(layout).map_err(|error| self.bug(&error))?;
        encode::encode(self, &columns.0, lines, out, stop)
    }
}

impl Table {
    fn bug(&self, error: &dyn std::fmt::Display) -> SinkError {
        SinkError::Encode {
            folder: self.folder.clone(),
            message: error.to_string(),
        }
    }
}
