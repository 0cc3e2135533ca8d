//! JSON numbers as columns hold them: nothing is rounded but decimal fractions.

/// Whole numbers below this are exact in 64 bits of floating point.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// True for the text of a JSON number.
pub(super) fn is_number(raw: &str) -> bool {
    raw.starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

/// A whole number of 64 bits; `1.0` is one, as in JSON Schema.
pub(super) fn integer(raw: &str) -> Option<i64> {
    if !is_number(raw) {
        return None;
    }
    if let Ok(value) = raw.parse() {
        return Some(value);
    }
    if is_whole(raw) {
        return None;
    }
    let value: f64 = raw.parse().ok()?;
    // Within these bounds the conversion is exact.
    #[allow(clippy::cast_possible_truncation)]
    (value.fract() == 0.0 && value.abs() < EXACT).then_some(value as i64)
}

/// A floating-point number; none if the number is too large, or whole and would be rounded.
pub(super) fn number(raw: &str) -> Option<f64> {
    if !is_number(raw) {
        return None;
    }
    let value: f64 = raw.parse().ok()?;
    if !value.is_finite() {
        return None;
    }
    if value.abs() >= EXACT && is_whole(raw) {
        // Saturates, and is then unequal.
        #[allow(clippy::cast_possible_truncation)]
        return (raw.parse() == Ok(value as i128)).then_some(value);
    }
    Some(value)
}

/// A floating-point number of 32 bits, the nearest one.
pub(super) fn float(raw: &str) -> Option<f32> {
    if !is_number(raw) {
        return None;
    }
    raw.parse::<f32>().ok().filter(|value| value.is_finite())
}

/// True for a number written without fraction and exponent.
pub(super) fn is_whole(raw: &str) -> bool {
    !raw.bytes().any(|b| matches!(b, b'.' | b'e' | b'E'))
}
