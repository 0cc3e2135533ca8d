//! Record batches as JSON objects, no value losing anything.
//!
//! What JSON has no form for: bytes are base64, times RFC 3339 (those with a zone in UTC), decimals numbers
//! with all their digits, keys of maps text; a number that is none, or infinite, is null.

use std::io::Write as _;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayAccessor, AsArray, Date32Array, Date64Array, MapArray, PrimitiveArray, StructArray,
};
use arrow::datatypes::{
    ArrowTemporalType, DataType, Field, FieldRef, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use arrow::error::ArrowError;
use arrow::json::writer::{NullableEncoder, make_encoder};
use arrow::json::{Encoder, EncoderFactory, EncoderOptions};
use arrow::record_batch::RecordBatch;

static OPTIONS: LazyLock<EncoderOptions> = LazyLock::new(|| {
    EncoderOptions::default()
        .with_explicit_nulls(true)
        .with_encoder_factory(Arc::new(Factory))
});

/// Appends every row as a JSON object; says where each ends.
///
/// # Errors
/// A column has a type that has no form in JSON.
pub(super) fn encode(batch: RecordBatch, out: &mut Vec<u8>) -> Result<Vec<usize>, ArrowError> {
    let field = Arc::new(Field::new_struct("", batch.schema().fields().clone(), false));
    let rows = StructArray::from(batch);
    let mut encoder = make_encoder(&field, &rows, &OPTIONS)?;
    let row = |index| {
        encoder.encode(index, out);
        out.len()
    };
    Ok((0..rows.len()).map(row).collect())
}

/// Encoders for what the default ones write in another form, or not at all.
#[derive(Debug)]
struct Factory;

impl EncoderFactory for Factory {
    fn make_default_encoder<'a>(
        &self,
        field: &'a FieldRef,
        array: &'a dyn Array,
        options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Binary => Box::new(Bytes(array.as_binary::<i32>())),
            DataType::LargeBinary => Box::new(Bytes(array.as_binary::<i64>())),
            DataType::BinaryView => Box::new(Bytes(array.as_binary_view())),
            DataType::FixedSizeBinary(_) => Box::new(Bytes(array.as_fixed_size_binary())),
            DataType::Timestamp(unit, zone) => {
                let utc = zone.is_some();
                match unit {
                    TimeUnit::Second => Time::<TimestampSecondType>::boxed(array, utc),
                    TimeUnit::Millisecond => Time::<TimestampMillisecondType>::boxed(array, utc),
                    TimeUnit::Microsecond => Time::<TimestampMicrosecondType>::boxed(array, utc),
                    TimeUnit::Nanosecond => Time::<TimestampNanosecondType>::boxed(array, utc),
                }
            }
            DataType::Date32 => {
                let dates: &Date32Array = array.as_primitive();
                Box::new(Day(|index| {
                    dates.value_as_date(index).map(|day| format!("{day:?}"))
                }))
            }
            DataType::Date64 => {
                let dates: &Date64Array = array.as_primitive();
                Box::new(Day(|index| {
                    dates.value_as_date(index).map(|day| format!("{day:?}"))
                }))
            }
            DataType::Map(..) => {
                let map = array.as_map();
                Box::new(Map {
                    map,
                    keys: make_encoder(field, map.keys(), options)?,
                    values: make_encoder(field, map.values(), options)?,
                    key: Vec::new(),
                })
            }
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

/// Bytes in base64.
struct Bytes<A>(A);

impl<'a, A: ArrayAccessor<Item = &'a [u8]>> Encoder for Bytes<A> {
    fn encode(&mut self, index: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        base64(self.0.value(index), out);
        out.push(b'"');
    }
}

/// RFC 4648 §4, with padding.
fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for (at, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let digit = DIGITS.get((bits >> shift & 63) as usize).copied().unwrap_or(b'=');
            out.push(if at <= three.len() { digit } else { b'=' });
        }
    }
}

/// Points in time.
struct Time<'a, T: ArrowTemporalType> {
    times: &'a PrimitiveArray<T>,
    utc: bool,
}

impl<'a, T: ArrowTemporalType> Time<'a, T>
where
    i64: From<T::Native>,
{
    fn boxed(array: &'a dyn Array, utc: bool) -> Box<dyn Encoder + 'a> {
        let times = array.as_primitive::<T>();
        Box::new(Self { times, utc })
    }
}

impl<T: ArrowTemporalType> Encoder for Time<'_, T>
where
    i64: From<T::Native>,
{
    fn encode(&mut self, index: usize, out: &mut Vec<u8>) {
        let _infallible = match self.times.value_as_datetime(index) {
            Some(time) => write!(out, "\"{time:?}{}\"", if self.utc { "Z" } else { "" }),
            // Beyond the calendar: the number it is stored as.
            None => write!(out, "{}", i64::from(self.times.value(index))),
        };
    }
}

/// Days; null beyond the calendar.
struct Day<F>(F);

impl<F: Fn(usize) -> Option<String>> Encoder for Day<F> {
    fn encode(&mut self, index: usize, out: &mut Vec<u8>) {
        let _infallible = match (self.0)(index) {
            Some(day) => write!(out, "\"{day}\""),
            None => write!(out, "null"),
        };
    }
}

/// A map as an object; keys that are no text are written as text.
struct Map<'a> {
    map: &'a MapArray,
    keys: NullableEncoder<'a>,
    values: NullableEncoder<'a>,
    key: Vec<u8>,
}

impl Encoder for Map<'_> {
    fn encode(&mut self, index: usize, out: &mut Vec<u8>) {
        let offsets = self.map.value_offsets();
        let offset = |at: usize| {
            offsets
                .get(at)
                .and_then(|at| usize::try_from(*at).ok())
                .unwrap_or(0)
        };
        out.push(b'{');
        for entry in offset(index)..offset(index + 1) {
            if entry > offset(index) {
                out.push(b',');
            }
            self.key.clear();
            if self.keys.is_null(entry) {
                self.key.extend_from_slice(b"null");
            } else {
                self.keys.encode(entry, &mut self.key);
            }
            if self.key.starts_with(b"\"") {
                out.extend_from_slice(&self.key);
            } else {
                crate::row::write_str(out, &String::from_utf8_lossy(&self.key));
            }
            out.push(b':');
            if self.values.is_null(entry) {
                out.extend_from_slice(b"null");
            } else {
                self.values.encode(entry, out);
            }
        }
        out.push(b'}');
    }
}
