//! The head of a GGUF file: the numbers that say how much memory it takes.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _};
use std::path::Path;

/// Longest text that is kept.
const TEXT: u64 = 1 << 10;
/// Longest list of numbers that is kept: one per layer.
const LIST: u64 = 1 << 14;
/// Most keys of a file that is not made to be read for ever.
const KEYS: u64 = 1 << 16;
/// Most items of one list that are stepped over one by one (texts of a vocabulary).
const ITEMS: u64 = 1 << 26;

/// What the head says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gguf {
    /// The kind of model, such as `llama`.
    pub architecture: String,
    /// Layers.
    pub layers: u64,
    /// Tokens that it was trained on at once; 0: not said.
    pub context: u64,
    /// Numbers in a token's state.
    pub width: u64,
    /// Tokens that it knows.
    pub vocabulary: u64,
    /// Numbers that are kept of each token in all layers together (keys and values).
    pub kept_per_token: u64,
}

/// Why a file has no head that can be read.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// Not even its first bytes can be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Something else: what it is.
    #[error("{0}")]
    Other(&'static str),
}

/// A value of the head, as far as it matters here.
enum Value {
    Number(u64),
    Numbers(Vec<u64>),
    Text(String),
    /// A list, of so many items.
    Items(u64),
    Other,
}

impl Gguf {
    /// Reads the head of a file.
    ///
    /// # Errors
    /// It cannot be read, or is no GGUF.
    pub fn read(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut head = Head {
            reader: BufReader::with_capacity(1 << 16, file),
            size,
        };
        let values = head.values()?;
        Ok(Self::of(&values))
    }

    fn of(values: &HashMap<String, Value>) -> Self {
        let architecture = match values.get("general.architecture") {
            Some(Value::Text(text)) => text.clone(),
            _ => String::new(),
        };
        let value = |key: &str| values.get(&format!("{architecture}.{key}"));
        let number = |key: &str| match value(key) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        };
        let layers = number("block_count").unwrap_or(0);
        let width = number("embedding_length").unwrap_or(0);
        // One number for all layers, or one for each.
        let per_layer = |key: &str| -> Option<Vec<u64>> {
            match value(key)? {
                Value::Number(number) => Some(vec![*number; usize::try_from(layers.min(LIST)).ok()?]),
                Value::Numbers(numbers) => Some(numbers.clone()),
                _ => None,
            }
        };
        let heads = per_layer("attention.head_count").unwrap_or_default();
        let most_heads = heads.iter().copied().max().unwrap_or(0);
        let own_length = width.checked_div(most_heads).unwrap_or(0);
        let keys = number("attention.key_length").unwrap_or(own_length);
        let others = number("attention.value_length").unwrap_or(own_length);
        let kept_heads = per_layer("attention.head_count_kv").unwrap_or(heads);
        let kept: u64 = kept_heads.iter().fold(0, |sum, heads| sum.saturating_add(*heads));
        let vocabulary = match values.get("tokenizer.ggml.tokens") {
            Some(Value::Items(count)) => *count,
            _ => number("vocab_size").unwrap_or(0),
        };
        Self {
            layers,
            width,
            vocabulary,
            context: number("context_length").unwrap_or(0),
            kept_per_token: kept.saturating_mul(keys.saturating_add(others)),
            architecture,
        }
    }
}

struct Head {
    reader: BufReader<File>,
    size: u64,
}

impl Head {
    fn values(&mut self) -> Result<HashMap<String, Value>, GgufError> {
        let magic: [u8; 4] = self
            .bytes()
            .map_err(|_| GgufError::Other("it is too short for a GGUF file"))?;
        if &magic == b"vers" {
            return Err(GgufError::Other(
                "it is a Git LFS pointer, not the model itself; `git lfs pull` fetches that",
            ));
        }
        if &magic != b"GGUF" {
            return Err(GgufError::Other("it is no GGUF file"));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Other(
                "it is a GGUF file of a version that is not known here, or of another byte order",
            ));
        }
        let _tensors = self.u64()?;
        let keys = self.u64()?;
        if keys > KEYS {
            return Err(GgufError::Other("its head is damaged"));
        }
        let mut values = HashMap::new();
        for _ in 0..keys {
            let key = self.text()?.unwrap_or_default();
            let kind = self.u32()?;
            let value = self.value(kind)?;
            values.insert(key, value);
        }
        Ok(values)
    }

    fn value(&mut self, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            8 => self.text()?.map_or(Value::Other, Value::Text),
            9 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                return self.list(kind, count);
            }
            _ => match self.number(kind)? {
                Some(number) => Value::Number(number),
                None => Value::Other,
            },
        })
    }

    fn list(&mut self, kind: u32, count: u64) -> Result<Value, GgufError> {
        let damaged = GgufError::Other("its head is damaged");
        if kind == 8 {
            if count > ITEMS {
                return Err(damaged);
            }
            for _ in 0..count {
                let length = self.u64()?;
                self.skip(length)?;
            }
            return Ok(Value::Items(count));
        }
        let Some(width) = width(kind) else {
            return Err(damaged);
        };
        if count > LIST {
            self.skip(count.checked_mul(width).ok_or(damaged)?)?;
            return Ok(Value::Items(count));
        }
        let mut numbers = Vec::new();
        for _ in 0..count {
            numbers.extend(self.number(kind)?);
        }
        Ok(Value::Numbers(numbers))
    }

    /// A number as far as it is a whole one that is not negative.
    fn number(&mut self, kind: u32) -> Result<Option<u64>, GgufError> {
        Ok(match kind {
            0 | 7 => Some(u64::from(self.bytes::<1>()?[0])),
            2 => Some(u64::from(u16::from_le_bytes(self.bytes()?))),
            4 => Some(u64::from(self.u32()?)),
            10 => Some(self.u64()?),
            1 => u64::try_from(i8::from_le_bytes(self.bytes()?)).ok(),
            3 => u64::try_from(i16::from_le_bytes(self.bytes()?)).ok(),
            5 => u64::try_from(i32::from_le_bytes(self.bytes()?)).ok(),
            11 => u64::try_from(i64::from_le_bytes(self.bytes()?)).ok(),
            6 => {
                self.skip(4)?;
                None
            }
            12 => {
                self.skip(8)?;
                None
            }
            _ => return Err(GgufError::Other("its head is damaged")),
        })
    }

    /// A text; none if it is too long to matter.
    fn text(&mut self) -> Result<Option<String>, GgufError> {
        let length = self.u64()?;
        if length > TEXT {
            self.skip(length)?;
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.read(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), GgufError> {
        let at = self.reader.stream_position()?;
        match at.checked_add(bytes) {
            Some(to) if to <= self.size => {
                let by = i64::try_from(bytes).unwrap_or(i64::MAX);
                // Stays in the buffer where it can.
                self.reader.seek_relative(by)?;
                Ok(())
            }
            _ => Err(GgufError::Other("it ends within its head: it is not whole")),
        }
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), GgufError> {
        self.reader.read_exact(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => GgufError::Other("it ends within its head: it is not whole"),
            _ => error.into(),
        })
    }
}

/// Bytes of a number of this kind.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
