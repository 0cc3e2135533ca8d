//! Whether two JSON texts say the same: numbers by their value, objects whatever the order of their keys.

use std::borrow::Cow;

use indexmap::IndexMap;

use crate::row::{raw_fields, raw_items, unquoted};

/// Values that are nested deeper are the same only if their texts are; rows of a run never are.
const MAX_DEPTH: usize = 128;
/// Whole numbers below this are exact as doubles.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The fields of an object by name; of a name that stands twice the last one.
///
/// `typed`: one of the two objects to compare comes from typed columns, which do not tell a field that is null
/// from one that was left out.
pub(super) fn fields(object: &str, typed: bool) -> IndexMap<Cow<'_, str>, &str> {
    let mut fields: IndexMap<Cow<'_, str>, &str> = raw_fields(object)
        .map(|(key, raw)| (unquoted(key), raw))
        .collect();
    if typed {
        fields.retain(|_, raw| *raw != "null");
    }
    fields
}

/// True when two valid JSON texts say the same.
///
/// `typed`: one of them comes from typed columns, where decimal fractions are doubles, and see [`fields`].
pub(super) fn same(a: &str, b: &str, typed: bool) -> bool {
    same_at(a, b, typed, 0)
}

fn same_at(a: &str, b: &str, typed: bool, depth: usize) -> bool {
    if a == b {
        return true;
    }
    if depth == MAX_DEPTH {
        return false;
    }
    let same = |a: &str, b: &str| same_at(a, b, typed, depth + 1);
    match (a.as_bytes().first(), b.as_bytes().first()) {
        (Some(b'{'), Some(b'{')) => {
            let (a, b) = (fields(a, typed), fields(b, typed));
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        (Some(b'['), Some(b'[')) => {
            let (mut a, mut b) = (raw_items(a), raw_items(b));
            loop {
                match (a.next(), b.next()) {
                    (None, None) => break true,
                    (Some(a), Some(b)) if same(a, b) => {}
                    _ => break false,
                }
            }
        }
        (Some(b'"'), Some(b'"')) => unquoted(a) == unquoted(b),
        (Some(a_first), Some(b_first)) if is_number(*a_first) && is_number(*b_first) => {
            same_number(a, b, typed)
        }
        _ => false,
    }
}

fn is_number(first: u8) -> bool {
    first == b'-' || first.is_ascii_digit()
}

fn same_number(a: &str, b: &str, typed: bool) -> bool {
    let exact = match (Decimal::of(a), Decimal::of(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    };
    if exact || !typed {
        return exact;
    }
    let fraction = |raw: &str| raw.bytes().any(|b| matches!(b, b'.' | b'e' | b'E'));
    match (a.parse::<f64>(), b.parse::<f64>()) {
        // Beyond a double all are the same infinity.
        (Ok(x), Ok(y)) if x == y && x.is_finite() => {
            (fraction(a) && fraction(b)) || ((fraction(a) || fraction(b)) && x.abs() < EXACT)
        }
        _ => false,
    }
}

/// A decimal number in its one shortest form: digits without zeros at either end, times a power of ten.
#[derive(PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// Reads a JSON number; none if its exponent is beyond all bounds.
    fn of(raw: &str) -> Option<Self> {
        let (negative, raw) = match raw.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, raw),
        };
        let (mantissa, exponent) = match raw.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (raw, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_end_matches('0');
        let zeros = i64::try_from(all.len() - digits.len()).ok()?;
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            return Some(Self {
                negative: false,
                digits: String::new(),
                exponent: 0,
            });
        }
        let places = i64::try_from(fraction.len()).ok()?;
        Some(Self {
            negative,
            digits: digits.to_owned(),
            exponent: exponent.checked_sub(places)?.checked_add(zeros)?,
        })
    }
}
