//! Column values as they are gathered from JSON text, row by row.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int64Array, ListArray,
    StringArray, StructArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};

use super::kind::{Column, Kind, fields, item_field};
use super::number;
use crate::row::{raw_fields, raw_items, unquoted};

/// A value that does not fit its column.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misfit;

/// The values of a column, or of a part of one.
#[derive(Debug)]
pub(super) struct Values {
    kind: Kind,
    valid: Vec<bool>,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Boolean(Vec<bool>),
    Integer(Vec<i64>),
    Number(Vec<f64>),
    Float(Vec<f32>),
    /// Text, and JSON text.
    Text {
        bytes: Vec<u8>,
        ends: Vec<i32>,
    },
    List {
        item: Box<Values>,
        ends: Vec<i32>,
    },
    /// So many numbers for each value, also where there is none.
    Vector {
        numbers: Vec<f32>,
        size: usize,
    },
    Struct(Set),
}

impl Values {
    /// An empty column.
    pub(super) fn new(kind: &Kind) -> Self {
        let ends = || vec![0];
        Self {
            kind: kind.clone(),
            valid: Vec::new(),
            data: match kind {
                Kind::Boolean => Data::Boolean(Vec::new()),
                Kind::Integer => Data::Integer(Vec::new()),
                Kind::Number => Data::Number(Vec::new()),
                Kind::Float => Data::Float(Vec::new()),
                Kind::Vector(size) => Data::Vector {
                    numbers: Vec::new(),
                    size: usize::try_from(*size).unwrap_or(0),
                },
                Kind::Text | Kind::Json => Data::Text {
                    bytes: Vec::new(),
                    ends: ends(),
                },
                Kind::List(item) => Data::List {
                    item: Box::new(Self::new(item)),
                    ends: ends(),
                },
                Kind::Struct(columns) => Data::Struct(Set::new(columns)),
            },
        }
    }

    /// Values so far.
    pub(super) fn len(&self) -> usize {
        self.valid.len()
    }

    /// Adds a value; one that does not fit leaves the column as it was.
    pub(super) fn push(&mut self, raw: &str) -> Result<(), Misfit> {
        if raw == "null" {
            self.push_null();
            return Ok(());
        }
        let len = self.len();
        let pushed = self.push_value(raw);
        match pushed {
            Ok(()) => self.valid.push(true),
            Err(Misfit) => self.truncate(len),
        }
        pushed
    }

    fn push_value(&mut self, raw: &str) -> Result<(), Misfit> {
        let row = self.valid.len();
        match &mut self.data {
            Data::Boolean(values) => values.push(match raw {
                "true" => true,
                "false" => false,
                _ => return Err(Misfit),
            }),
            Data::Integer(values) => values.push(number::integer(raw).ok_or(Misfit)?),
            Data::Number(values) => values.push(number::number(raw).ok_or(Misfit)?),
            Data::Float(values) => values.push(number::float(raw).ok_or(Misfit)?),
            Data::Vector { numbers, size } => {
                if !raw.starts_with('[') {
                    return Err(Misfit);
                }
                let before = numbers.len();
                for raw in raw_items(raw) {
                    numbers.push(number::float(raw).ok_or(Misfit)?);
                }
                if numbers.len() - before != *size {
                    return Err(Misfit);
                }
            }
            Data::Text { bytes, ends } => {
                if self.kind == Kind::Json {
                    bytes.extend_from_slice(raw.as_bytes());
                } else if raw.starts_with('"') {
                    bytes.extend_from_slice(unquoted(raw).as_bytes());
                } else {
                    return Err(Misfit);
                }
                ends.push(i32::try_from(bytes.len()).map_err(|_| Misfit)?);
            }
            Data::List { item, ends } => {
                if !raw.starts_with('[') {
                    return Err(Misfit);
                }
                raw_items(raw).try_for_each(|raw| item.push(raw))?;
                ends.push(i32::try_from(item.len()).map_err(|_| Misfit)?);
            }
            Data::Struct(set) => {
                if !raw.starts_with('{') {
                    return Err(Misfit);
                }
                set.start();
                for (key, raw) in raw_fields(raw) {
                    let values = set.find(key).ok_or(Misfit)?;
                    if values.len() > row {
                        // A key that stands twice: the last one counts.
                        values.truncate(row);
                    }
                    values.push(raw)?;
                }
                set.fill(row + 1);
            }
        }
        Ok(())
    }

    /// Adds a null.
    pub(super) fn push_null(&mut self) {
        self.valid.push(false);
        match &mut self.data {
            Data::Boolean(values) => values.push(false),
            Data::Integer(values) => values.push(0),
            Data::Number(values) => values.push(0.0),
            Data::Float(values) => values.push(0.0),
            Data::Vector { numbers, size } => numbers.resize(numbers.len() + *size, 0.0),
            Data::Text { ends, .. } | Data::List { ends, .. } => ends.extend(ends.last().copied()),
            Data::Struct(set) => set.fill(self.valid.len()),
        }
    }

    /// Takes back all but the first `len` values, and what was left of one that did not fit.
    pub(super) fn truncate(&mut self, len: usize) {
        self.valid.truncate(len);
        let cut = |ends: &mut Vec<i32>| {
            ends.truncate(len + 1);
            ends.last().map_or(0, |end| usize::try_from(*end).unwrap_or(0))
        };
        match &mut self.data {
            Data::Boolean(values) => values.truncate(len),
            Data::Integer(values) => values.truncate(len),
            Data::Number(values) => values.truncate(len),
            Data::Float(values) => values.truncate(len),
            Data::Vector { numbers, size } => numbers.truncate(len * *size),
            Data::Text { bytes, ends } => bytes.truncate(cut(ends)),
            Data::List { item, ends } => item.truncate(cut(ends)),
            Data::Struct(set) => set.columns.iter_mut().for_each(|values| values.truncate(len)),
        }
    }

    /// Takes all values out as an Arrow array.
    pub(super) fn take(&mut self) -> ArrayRef {
        let valid = std::mem::take(&mut self.valid);
        let rows = valid.len();
        let nulls = valid.contains(&false).then(|| NullBuffer::from(valid));
        let offsets =
            |ends: &mut Vec<i32>| OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(ends, vec![0])));
        match &mut self.data {
            Data::Boolean(values) => Arc::new(BooleanArray::new(std::mem::take(values).into(), nulls)),
            Data::Integer(values) => Arc::new(Int64Array::new(std::mem::take(values).into(), nulls)),
            Data::Number(values) => Arc::new(Float64Array::new(std::mem::take(values).into(), nulls)),
            Data::Float(values) => Arc::new(Float32Array::new(std::mem::take(values).into(), nulls)),
            Data::Vector { numbers, .. } => {
                let (Kind::Vector(size), numbers) = (&self.kind, std::mem::take(numbers)) else {
                    return arrow::array::new_null_array(&self.kind.data_type(), rows);
                };
                let numbers = Float32Array::new(numbers.into(), None);
                Arc::new(FixedSizeListArray::new(
                    item_field(&Kind::Float),
                    *size,
                    Arc::new(numbers),
                    nulls,
                ))
            }
            Data::Text { bytes, ends } => Arc::new(StringArray::new(
                offsets(ends),
                Buffer::from_vec(std::mem::take(bytes)),
                nulls,
            )),
            Data::List { item, ends } => {
                let field = item_field(&item.kind);
                Arc::new(ListArray::new(field, offsets(ends), item.take(), nulls))
            }
            Data::Struct(set) => {
                let Kind::Struct(columns) = &self.kind else {
                    return arrow::array::new_null_array(&self.kind.data_type(), rows);
                };
                let arrays = set.columns.iter_mut().map(Self::take).collect();
                Arc::new(StructArray::new(fields(columns), arrays, nulls))
            }
        }
    }
}

/// Columns that are found by key.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) columns: Vec<Values>,
    /// The keys as they stand in JSON text.
    keys: Vec<String>,
    index: HashMap<String, usize>,
    /// Where the next key is probably found: rows have their keys in the same order.
    next: usize,
}

impl Set {
    /// Empty columns.
    pub(super) fn new(columns: &[Column]) -> Self {
        let key = |column: &Column| {
            let mut key = Vec::new();
            crate::row::write_str(&mut key, &column.name);
            String::from_utf8_lossy(&key).into_owned()
        };
        Self {
            columns: columns.iter().map(|column| Values::new(&column.kind)).collect(),
            keys: columns.iter().map(key).collect(),
            index: columns
                .iter()
                .enumerate()
                .map(|(at, column)| (column.name.clone(), at))
                .collect(),
            next: 0,
        }
    }

    /// A new row begins.
    pub(super) fn start(&mut self) {
        self.next = 0;
    }

    /// The column of a key as it stands in JSON text.
    pub(super) fn find(&mut self, key: &str) -> Option<&mut Values> {
        let after = self.keys.get(self.next..).unwrap_or_default();
        // Optional fields may be left out: a look at a few is cheaper than a hash.
        let near = after.iter().take(4).position(|known| known == key);
        let at = match near {
            Some(near) => self.next + near,
            None => *self.index.get(&*unquoted(key))?,
        };
        self.next = at + 1;
        self.columns.get_mut(at)
    }

    /// Adds nulls where this row had no value.
    pub(super) fn fill(&mut self, rows: usize) {
        for values in &mut self.columns {
            if values.len() < rows {
                values.push_null();
            }
        }
    }
}
