//! Numbers as people read them, for every message that counts something.

/// A number with thousands separated: `1,234,567`.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// So many of something: `1 row`, `1,200 rows`, `2 branches`.
pub(crate) fn counted(n: u64, noun: &str) -> String {
    let plural = match noun {
        _ if n == 1 => "",
        _ if noun.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{} {noun}{plural}", thousands(n))
}

/// `is` or `are`, as so many need.
pub(crate) fn are(n: u64) -> &'static str {
    if n == 1 { "is" } else { "are" }
}
