//! Column types from the models where they declare them, and from the first rows where they do not.

use indexmap::IndexMap;

use super::kind::{Column, Kind};
use super::number;
use crate::row::{raw_fields, raw_items, unquoted};

/// Objects with more different keys than this are dictionaries: JSON text.
const MAX_KEYS: usize = 256;
/// Values nested deeper than this are JSON text from there on.
const MAX_DEPTH: usize = 16;

/// What is known about a column so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Guess {
    /// Nothing but nulls.
    #[default]
    Unknown,
    /// Declared, or mixed.
    Fixed(Kind),
    /// Only booleans.
    Boolean,
    /// Only whole numbers of 64 bits.
    Integer {
        /// All of them are exact as floating-point numbers.
        exact: bool,
    },
    /// Only numbers.
    Number,
    /// Only strings.
    Text,
    /// Declared as lists of 32-bit numbers, all as long as the first one.
    Vector {
        /// How long that was.
        size: Option<i32>,
    },
    /// Only lists.
    List {
        /// Their items.
        item: Box<Guess>,
        /// A model says that it is a list.
        declared: bool,
    },
    /// Only objects.
    Struct {
        /// By key.
        fields: IndexMap<String, Guess>,
        /// A model says that it is an object.
        declared: bool,
        /// It may have other keys than these.
        open: bool,
    },
}

impl Guess {
    /// Looks at a value.
    pub(super) fn see(&mut self, raw: &str) {
        self.see_at(raw, 0);
    }

    fn see_at(&mut self, raw: &str, depth: usize) {
        if raw == "null" || matches!(self, Self::Fixed(_)) {
            return;
        }
        if matches!(self, Self::Unknown) {
            *self = Self::first(raw, depth);
        }
        let fits = match (&mut *self, raw.as_bytes().first()) {
            (Self::Boolean, Some(b't' | b'f')) | (Self::Text, Some(b'"')) => true,
            (Self::Integer { exact }, _) if number::is_number(raw) => match number::integer(raw) {
                Some(_) if number::is_whole(raw) => {
                    *exact &= number::number(raw).is_some();
                    true
                }
                _ if *exact && number::number(raw).is_some() => {
                    *self = Self::Number;
                    true
                }
                _ => false,
            },
            (Self::Number, _) => number::number(raw).is_some(),
            (Self::Vector { size }, first) => {
                if size.is_none() && first == Some(&b'[') {
                    *size = i32::try_from(raw_items(raw).count())
                        .ok()
                        .filter(|size| *size > 0);
                }
                true
            }
            (Self::List { item, .. }, Some(b'[')) => {
                raw_items(raw).for_each(|raw| item.see_at(raw, depth + 1));
                true
            }
            (
                Self::Struct {
                    fields,
                    declared,
                    open,
                },
                Some(b'{'),
            ) => {
                for (key, raw) in raw_fields(raw) {
                    let key = unquoted(key);
                    let more = *open && !(*declared && fields.len() >= MAX_KEYS);
                    if let Some(guess) = fields.get_mut(&*key) {
                        guess.see_at(raw, depth + 1);
                    } else if more {
                        fields.entry(key.into_owned()).or_default().see_at(raw, depth + 1);
                    }
                }
                *declared || fields.len() <= MAX_KEYS
            }
            // What a model declared stays: such a value is rescued.
            (Self::List { declared: true, .. } | Self::Struct { declared: true, .. }, _) => true,
            _ => false,
        };
        if !fits {
            *self = Self::Fixed(Kind::Json);
        }
    }

    /// The narrowest guess for a value that is not null.
    fn first(raw: &str, depth: usize) -> Self {
        match raw.as_bytes().first() {
            Some(b't' | b'f') => Self::Boolean,
            Some(b'"') => Self::Text,
            Some(b'[' | b'{') if depth >= MAX_DEPTH => Self::Fixed(Kind::Json),
            Some(b'[') => Self::List {
                item: Box::default(),
                declared: false,
            },
            Some(b'{') => Self::Struct {
                fields: IndexMap::new(),
                declared: false,
                open: true,
            },
            _ if number::is_whole(raw) => Self::Integer { exact: true },
            _ => Self::Number,
        }
    }

    /// The kind it comes to: JSON text where nothing was seen.
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Unknown => Kind::Json,
            Self::Fixed(kind) => kind,
            Self::Boolean => Kind::Boolean,
            Self::Integer { .. } => Kind::Integer,
            Self::Number => Kind::Number,
            Self::Text => Kind::Text,
            Self::Vector { size: Some(size) } => Kind::Vector(size),
            // No row had one.
            Self::Vector { size: None } => Kind::List(Box::new(Kind::Float)),
            Self::List { item, .. } => Kind::List(Box::new(item.kind())),
            // Parquet has no empty structs.
            Self::Struct { fields, .. } if fields.is_empty() => Kind::Json,
            Self::Struct { fields, .. } => Kind::Struct(columns(fields)),
        }
    }
}

/// Guesses by name as columns.
pub(super) fn columns(guesses: IndexMap<String, Guess>) -> Vec<Column> {
    guesses
        .into_iter()
        .map(|(name, guess)| Column {
            name,
            kind: guess.kind(),
        })
        .collect()
}
