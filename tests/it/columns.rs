//! Parquet shards as text: what they hold, and what the reference's lines must be in them.
//!
//! The first line of a shard names the columns and their types; then each row has a line, nulls left out.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::value::RawValue;

use crate::twins::{fields, parse, quote};

/// Whole numbers below this are exact as floating-point numbers.
const EXACT: u64 = 1 << 53;

/// What a column holds, as the README says it.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// Nothing but nulls so far.
    Unknown,
    Boolean,
    Integer,
    Number,
    Text,
    Json,
    List(Box<Kind>),
    /// Numbers of 32 bits, so many in each row.
    Vector(usize),
    Struct(Columns),
}

type Columns = Vec<(String, Kind)>;

/// A shard as text.
pub fn rows(path: &Path) -> String {
    let builder = builder(path);
    let columns = columns(&builder);
    let mut text = header(&columns);
    for batch in builder.build().expect("a shard can be read") {
        let batch = batch.expect("a batch");
        for row in 0..batch.num_rows() {
            let cells = columns.iter().zip(batch.columns());
            let cells = cells.map(|((name, kind), array)| (name, cell(kind, array, row)));
            text.push_str(&(object(cells) + "\n"));
        }
    }
    text
}

fn builder(path: &Path) -> ParquetRecordBatchReaderBuilder<File> {
    let file = File::open(path).expect("a shard can be opened");
    ParquetRecordBatchReaderBuilder::try_new(file).expect("a shard is Parquet")
}

/// The columns of a shard; those with JSON text are named in its metadata.
fn columns(builder: &ParquetRecordBatchReaderBuilder<File>) -> Columns {
    let entries = builder.metadata().file_metadata().key_value_metadata();
    let entry = entries
        .into_iter()
        .flatten()
        .find(|entry| entry.key == "chainette.json_text");
    let json = entry
        .and_then(|entry| entry.value.as_deref())
        .expect("JSON columns are named");
    let mut json: Vec<Vec<String>> = serde_json::from_str(json).expect("paths");
    json.push(vec!["_rescued".into()]);
    let all = builder.schema().fields().iter();
    all.map(|field| {
        let mut path = vec![field.name().clone()];
        (field.name().clone(), kind(field.data_type(), &mut path, &json))
    })
    .collect()
}

fn kind(found: &DataType, path: &mut Vec<String>, json: &[Vec<String>]) -> Kind {
    match found {
        DataType::Boolean => Kind::Boolean,
        DataType::Int64 => Kind::Integer,
        DataType::Float64 => Kind::Number,
        DataType::Utf8 if json.contains(path) => Kind::Json,
        DataType::Utf8 => Kind::Text,
        DataType::List(item) if *item.data_type() == DataType::Float32 => Kind::Vector(0),
        DataType::List(item) => {
            path.extend(["list".to_owned(), "element".to_owned()]);
            let item = kind(item.data_type(), path, json);
            path.truncate(path.len() - 2);
            Kind::List(Box::new(item))
        }
        DataType::FixedSizeList(item, size) if *item.data_type() == DataType::Float32 => {
            Kind::Vector(usize::try_from(*size).expect("a size"))
        }
        DataType::Struct(parts) => {
            let parts = parts.iter().map(|part| {
                path.push(part.name().clone());
                let kind = kind(part.data_type(), path, json);
                path.pop();
                (part.name().clone(), kind)
            });
            Kind::Struct(parts.collect())
        }
        other => panic!("no column is {other}"),
    }
}

fn cell(kind: &Kind, array: &dyn Array, row: usize) -> Option<String> {
    if array.is_null(row) {
        return None;
    }
    Some(match kind {
        Kind::Boolean => array.as_boolean().value(row).to_string(),
        Kind::Integer => array.as_primitive::<Int64Type>().value(row).to_string(),
        Kind::Number => format!("{:?}", array.as_primitive::<Float64Type>().value(row)),
        Kind::Text => quote(array.as_string::<i32>().value(row)),
        Kind::Json | Kind::Unknown => array.as_string::<i32>().value(row).to_owned(),
        Kind::List(item) => {
            let items = array.as_list::<i32>().value(row);
            list((0..items.len()).map(|at| cell(item, &items, at)))
        }
        Kind::Vector(_) => {
            let items = array.as_fixed_size_list().value(row);
            let numbers = items.as_primitive::<Float32Type>().values().iter();
            list(numbers.map(|number| Some(format!("{number:?}"))))
        }
        Kind::Struct(parts) => {
            let arrays = array.as_struct().columns();
            object(
                parts
                    .iter()
                    .zip(arrays)
                    .map(|((name, kind), array)| (name, cell(kind, array, row))),
            )
        }
    })
}

fn list(items: impl Iterator<Item = Option<String>>) -> String {
    let items: Vec<_> = items.map(|item| item.unwrap_or("null".into())).collect();
    format!("[{}]", items.join(","))
}

fn object<'a>(cells: impl Iterator<Item = (&'a String, Option<String>)>) -> String {
    let cells: Vec<_> = cells
        .filter_map(|(name, cell)| cell.map(|cell| format!("{}:{cell}", quote(name))))
        .collect();
    format!("{{{}}}", cells.join(","))
}

fn header(columns: &Columns) -> String {
    format!("{columns:?}\n")
}

/// The reference's files as a Parquet run must hold them. Types are checked against the lines' values: where
/// these leave them open (nulls only, empty lists, fields that never came), a model may have declared anything.
/// `declared` are the columns that a model says are whole numbers, of whatever size.
pub fn of_lines(files: &BTreeMap<String, String>, out: &Path, declared: &[&str]) -> BTreeMap<String, String> {
    let mut expected = BTreeMap::new();
    let mut known = BTreeMap::new();
    for (name, text) in files {
        let (folder, shard) = name.split_once('/').expect("a file in a folder");
        if folder == "errors" {
            expected.insert(name.clone(), text.clone());
            continue;
        }
        let columns = known.entry(folder).or_insert_with(|| {
            let shards = files
                .range(format!("{folder}/")..format!("{folder}0"))
                .map(|(_, text)| text.as_str());
            let seen = shards
                .flat_map(str::lines)
                .map(of_value)
                .fold(Kind::Unknown, both);
            let seen = match seen {
                Kind::Struct(columns) => columns,
                _ => Vec::new(),
            };
            settle(&out.join(folder).join("000.parquet"), seen, declared)
        });
        let mut rows = header(columns);
        for line in text.lines() {
            rows.push_str(&(row(columns, line) + "\n"));
        }
        expected.insert(format!("{folder}/{}", shard.replace(".jsonl", ".parquet")), rows);
    }
    expected
}

/// The columns that were found if they may hold what was seen, else those that were to be found.
fn settle(path: &Path, seen: Columns, declared: &[&str]) -> Columns {
    let mut all = vec![("row_id".to_owned(), Kind::Text)];
    all.extend(seen.into_iter().filter(|(name, _)| name != "row_id"));
    all.push(("_rescued".to_owned(), Kind::Json));
    if !path.exists() {
        return all;
    }
    let found = columns(&builder(path));
    let holds = |(name, seen): &(String, Kind)| {
        let kind = found.iter().find(|(column, _)| column == name);
        kind.is_some_and(|(_, kind)| {
            let open = *kind == Kind::Integer && declared.contains(&name.as_str());
            open || may_hold(kind, seen)
        })
    };
    let ends = found.first() == all.first() && found.last() == all.last();
    if ends && all.iter().all(holds) { found } else { all }
}

fn may_hold(kind: &Kind, seen: &Kind) -> bool {
    match (kind, seen) {
        (_, Kind::Unknown) => true,
        (Kind::List(kind), Kind::List(seen)) => may_hold(kind, seen),
        (Kind::Vector(size), Kind::List(seen)) => *size > 0 && **seen == Kind::Number,
        (Kind::Json, Kind::Struct(none)) if none.is_empty() => true,
        (Kind::Struct(parts), Kind::Struct(seen)) => seen.iter().all(|(name, seen)| {
            let part = parts.iter().find(|(part, _)| part == name);
            part.is_some_and(|(_, kind)| may_hold(kind, seen))
        }),
        (kind, seen) => kind == seen,
    }
}

/// What values of this kind are.
fn of_value(raw: &str) -> Kind {
    match raw.as_bytes().first() {
        Some(b'n') => Kind::Unknown,
        Some(b't' | b'f') => Kind::Boolean,
        Some(b'"') => Kind::Text,
        Some(b'[') => {
            let items = items(raw);
            let kinds = items.iter().map(|raw| of_value(raw.get()));
            Kind::List(Box::new(kinds.fold(Kind::Unknown, both)))
        }
        Some(b'{') => {
            let parts = fields(raw);
            Kind::Struct(
                parts
                    .iter()
                    .map(|(name, raw)| (name.clone(), of_value(raw)))
                    .collect(),
            )
        }
        _ if raw.contains(['.', 'e', 'E']) => Kind::Number,
        _ if raw.parse::<i64>().is_ok_and(|n| n.unsigned_abs() < EXACT) => Kind::Integer,
        // No whole number between the two is drawn.
        _ => Kind::Json,
    }
}

fn items(raw: &str) -> Vec<Box<RawValue>> {
    serde_json::from_str(raw).expect("a list")
}

/// What holds values of either kind.
fn both(a: Kind, b: Kind) -> Kind {
    match (a, b) {
        (Kind::Unknown, kind) | (kind, Kind::Unknown) => kind,
        (Kind::Integer, Kind::Number) | (Kind::Number, Kind::Integer) => Kind::Number,
        (Kind::List(a), Kind::List(b)) => Kind::List(Box::new(both(*a, *b))),
        (Kind::Struct(mut all), Kind::Struct(more)) => {
            for (name, kind) in more {
                match all.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, known)) => *known = both(std::mem::replace(known, Kind::Unknown), kind),
                    None => all.push((name, kind)),
                }
            }
            Kind::Struct(all)
        }
        (a, b) if a == b => a,
        _ => Kind::Json,
    }
}

/// A line as the columns hold it; what one cannot hold is rescued.
fn row(columns: &Columns, line: &str) -> String {
    let mut rescued = Vec::new();
    let values = fields(line);
    let mut cells: Vec<_> = columns
        .iter()
        .map(|(name, kind)| {
            let raw = values.get(name).map(String::as_str);
            let held = raw.map(|raw| value(kind, raw).ok_or(raw));
            let cell = held.and_then(|held| {
                held.inspect_err(|raw| rescued.push(format!("{}:{raw}", quote(name))))
                    .ok()
            });
            (name, cell.filter(|cell| cell != "null"))
        })
        .collect();
    if let Some((_, last)) = cells.last_mut().filter(|_| !rescued.is_empty()) {
        *last = Some(format!("{{{}}}", rescued.join(",")));
    }
    object(cells.into_iter())
}

/// A value as a column holds it; none when it cannot.
fn value(kind: &Kind, raw: &str) -> Option<String> {
    if raw == "null" {
        return Some(raw.into());
    }
    Some(match kind {
        Kind::Unknown | Kind::Json => raw.into(),
        Kind::Boolean => parse(raw).as_bool()?.to_string(),
        Kind::Integer => raw.parse::<i64>().ok()?.to_string(),
        Kind::Number => format!("{:?}", parse(raw).as_f64()?),
        Kind::Text => quote(parse(raw).as_str()?),
        Kind::List(item) => {
            let items: Option<Vec<_>> = items(raw).iter().map(|raw| value(item, raw.get())).collect();
            list(items?.into_iter().map(Some))
        }
        Kind::Vector(size) => {
            let items = items(raw);
            let numbers: Option<Vec<f32>> = items.iter().map(|raw| raw.get().parse().ok()).collect();
            let numbers = numbers.filter(|numbers| numbers.len() == *size)?;
            list(numbers.iter().map(|number| Some(format!("{number:?}"))))
        }
        Kind::Struct(parts) => {
            let values = fields(raw);
            let cells: Option<Vec<_>> = parts
                .iter()
                .map(|(name, kind)| {
                    let raw = values.get(name).map_or("null", String::as_str);
                    value(kind, raw).map(|cell| (name, Some(cell).filter(|cell| cell != "null")))
                })
                .collect();
            object(cells?.into_iter())
        }
    })
}
