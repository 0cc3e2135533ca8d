//! Values that satisfy a JSON Schema, and the dice that choose them.

use serde_json::Value;

/// Numbers that follow from a seed.
pub struct Dice(blake3::OutputReader);

impl Dice {
    /// The same bytes give the same numbers.
    pub fn new(seed: &[u8]) -> Self {
        Self(blake3::Hasher::new().update(seed).finalize_xof())
    }

    /// A number below `n` (0 for `n == 0`).
    pub fn below(&mut self, n: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes).checked_rem(n).unwrap_or(0)
    }

    /// A number in 0..1 with three decimals.
    pub fn fraction(&mut self) -> f64 {
        self.below(1000) as f64 / 1000.0
    }

    /// 1..=`most` short words.
    pub fn words(&mut self, most: u64) -> String {
        const WORDS: [&str; 12] = [
            "quiet",
            "brown",
            "river",
            "naïve",
            "\"quoted\"",
            "tab\there",
            "日本",
            "seven",
            "of",
            "back\\slash",
            "line\nbreak",
            "🙂",
        ];
        let count = 1 + self.below(most);
        let words = (0..count).map(|_| WORDS[self.below(WORDS.len() as u64) as usize]);
        words.collect::<Vec<_>>().join(" ")
    }
}

/// A value that a JSON Schema accepts (of the keywords that adapters send).
pub fn sample(schema: &Value, root: &Value, dice: &mut Dice, depth: usize) -> Value {
    if let Some(target) = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#')) {
        return sample(root.pointer(target).unwrap_or(&Value::Null), root, dice, depth);
    }
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    for key in ["enum", "anyOf", "oneOf", "allOf"] {
        if let Some(options) = schema[key].as_array().filter(|o| !o.is_empty()) {
            let pick = &options[dice.below(options.len() as u64) as usize];
            return match key {
                "enum" => pick.clone(),
                _ => sample(pick, root, dice, depth + 1),
            };
        }
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) if !kinds.is_empty() => kinds[dice.below(kinds.len() as u64) as usize].as_str(),
        kind => kind.as_str(),
    };
    let int = |key: &str| schema[key].as_i64();
    match kind.unwrap_or(if schema.get("properties").is_some() {
        "object"
    } else {
        "string"
    }) {
        "null" => Value::Null,
        "boolean" => (dice.below(2) == 1).into(),
        "integer" => {
            let low = int("minimum")
                .or(int("exclusiveMinimum").map(|m| m + 1))
                .unwrap_or(-5);
            let high = int("maximum")
                .or(int("exclusiveMaximum").map(|m| m - 1))
                .unwrap_or(low + 100);
            (low + dice.below((high - low + 1).max(1) as u64) as i64).into()
        }
        "number" => {
            let low = schema["minimum"].as_f64().unwrap_or(0.0);
            let high = schema["maximum"].as_f64().unwrap_or(low + 1.0);
            (low + (high - low) * dice.fraction()).into()
        }
        "array" => {
            let (low, high) = (int("minItems").unwrap_or(0), int("maxItems").unwrap_or(3));
            let high = if depth > 4 { low } else { high.min(low + 3) };
            let count = low + dice.below((high - low + 1).max(1) as u64) as i64;
            (0..count)
                .map(|_| sample(&schema["items"], root, dice, depth + 1))
                .collect()
        }
        "object" => {
            let mut fields = serde_json::Map::new();
            let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                if required.iter().any(|r| r == name) || (depth < 4 && dice.below(2) == 1) {
                    fields.insert(name.clone(), sample(field, root, dice, depth + 1));
                }
            }
            Value::Object(fields)
        }
        _ => {
            let mut text = dice.words(4);
            if let Some(most) = int("maxLength") {
                text = text.chars().take(most as usize).collect();
            }
            while text.chars().count() < int("minLength").unwrap_or(0) as usize {
                text.push('x');
            }
            text.into()
        }
    }
}
