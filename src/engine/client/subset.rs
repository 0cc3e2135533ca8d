//! What the structured outputs of each backend understand.

/// What the schemas of one backend may say beyond the common shape.
#[derive(Debug)]
pub struct Subset {
    /// Keywords of strings, numbers and arrays that are kept.
    string: &'static [&'static str],
    number: &'static [&'static str],
    array: &'static [&'static str],
    /// Values of `format` that are kept.
    pub(super) formats: &'static [&'static str],
    /// Objects with fields of any name, and values of any kind, are allowed.
    pub(super) open: bool,
    /// Lengths beyond this are dropped.
    pub(super) longest: u64,
}

/// OpenAI's strict mode.
pub const OPENAI: Subset = Subset {
    string: &["enum", "pattern", "format"],
    number: &[
        "enum",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    ],
    array: &["minItems", "maxItems"],
    formats: &[
        "date-time",
        "time",
        "date",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uuid",
    ],
    open: false,
    longest: u64::MAX,
};

/// xgrammar, as vLLM uses it: `multipleOf` makes vLLM refuse the request.
pub const XGRAMMAR: Subset = Subset {
    string: &["enum", "pattern", "format", "minLength", "maxLength"],
    number: &[
        "enum",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
    ],
    open: true,
    ..OPENAI
};

/// llama.cpp's grammars (grammars/README.md, "JSON Schemas"), also Ollama's: few formats, and a
/// grammar with more than 2,000 repetitions is refused.
pub const LLAMA: Subset = Subset {
    formats: &["date-time", "time", "date", "uuid"],
    longest: 1000,
    ..XGRAMMAR
};

/// outlines-core, as TGI uses it: no bounds of numbers; long repetitions take long to compile.
pub const OUTLINES: Subset = Subset {
    number: &["enum"],
    formats: &["date-time", "time", "date", "uuid"],
    open: false,
    longest: 1000,
    ..XGRAMMAR
};

impl Subset {
    /// Keywords that are kept next to a type; `description` and `title` always are.
    pub(super) fn kept(&self, kind: &str) -> &'static [&'static str] {
        match kind {
            "string" => self.string,
            "number" | "integer" => self.number,
            "boolean" | "null" => &["enum"],
            "array" => self.array,
            _ => &[],
        }
    }
}
