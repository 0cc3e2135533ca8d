//! What a column holds.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields};
use serde::{Deserialize, Serialize};

/// The type of a column, or of a part of one. Everything is nullable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// `true`, `false`.
    Boolean,
    /// 64 bits, signed.
    Integer,
    /// 64 bits, floating.
    Number,
    /// 32 bits, floating.
    Float,
    /// UTF-8.
    Text,
    /// Any JSON value, as the text it came as.
    Json,
    /// A list of one kind.
    List(Box<Kind>),
    /// So many floating-point numbers of 32 bits.
    Vector(i32),
    /// At least one field, names all different.
    Struct(Vec<Column>),
}

/// A named kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Column {
    /// The name.
    pub(super) name: String,
    /// What it holds.
    pub(super) kind: Kind,
}

impl Kind {
    /// The Arrow type, which decides the Parquet type.
    pub(super) fn data_type(&self) -> DataType {
        match self {
            Self::Boolean => DataType::Boolean,
            Self::Integer => DataType::Int64,
            Self::Number => DataType::Float64,
            Self::Float => DataType::Float32,
            Self::Text | Self::Json => DataType::Utf8,
            Self::List(item) => DataType::List(item_field(item)),
            Self::Vector(size) => DataType::FixedSizeList(item_field(&Self::Float), *size),
            Self::Struct(columns) => DataType::Struct(fields(columns)),
        }
    }

    /// How messages call it.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Boolean => "a boolean",
            Self::Integer => "an integer of 64 bits",
            Self::Number => "a number",
            Self::Float => "a number of 32 bits",
            Self::Text => "a string",
            Self::Json => "JSON",
            Self::List(_) => "a list",
            Self::Vector(_) => "a list of numbers of the same length in every row",
            Self::Struct(_) => "an object",
        }
    }

    /// True where Parquet itself does not tell all of the type: it has no lists of fixed size.
    pub(super) fn needs_arrow(&self) -> bool {
        match self {
            Self::Vector(_) => true,
            Self::List(item) => item.needs_arrow(),
            Self::Struct(columns) => columns.iter().any(|column| column.kind.needs_arrow()),
            _ => false,
        }
    }

    /// Adds the Parquet paths of all parts that hold JSON text.
    pub(super) fn json_paths(&self, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
        match self {
            Self::Json => found.push(path.clone()),
            Self::List(item) => {
                path.extend(["list".to_owned(), "element".to_owned()]);
                item.json_paths(path, found);
                path.truncate(path.len() - 2);
            }
            Self::Struct(columns) => {
                for column in columns {
                    path.push(column.name.clone());
                    column.kind.json_paths(path, found);
                    path.pop();
                }
            }
            _ => {}
        }
    }
}

/// The field of a list's items, under the name that the Parquet specification gives it.
pub(super) fn item_field(item: &Kind) -> Arc<Field> {
    Arc::new(Field::new("element", item.data_type(), true))
}

/// The fields of an object.
pub(super) fn fields(columns: &[Column]) -> Fields {
    columns
        .iter()
        .map(|column| Field::new(&column.name, column.kind.data_type(), true))
        .collect()
}
