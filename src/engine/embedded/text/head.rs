//! The head of a GGUF file: what it says of the model, by name.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Tensor};

use crate::engine::embedded::LoadError;

/// An open GGUF file.
pub(super) struct Head {
    path: PathBuf,
    content: Content,
    reader: BufReader<File>,
    /// The kind of model, such as `llama`.
    pub(super) architecture: String,
}

impl Head {
    /// Reads the head.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let unreadable =
            |why: &dyn std::fmt::Display| LoadError::new(format!("{} cannot be read: {why}", path.display()));
        let file = File::open(path).map_err(|error| unreadable(&error))?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let content = Content::read(&mut reader).map_err(|error| unreadable(&error))?;
        let mut head = Self {
            path: path.to_owned(),
            content,
            reader,
            architecture: String::new(),
        };
        head.architecture = head.need_text("general.architecture")?.to_owned();
        Ok(head)
    }

    /// An error about this file.
    pub(super) fn wrong(&self, what: impl std::fmt::Display) -> LoadError {
        LoadError::new(format!("{}: {what}", self.path.display()))
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    fn own(&self, key: &str) -> Option<&Value> {
        self.value(&format!("{}.{key}", self.architecture))
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn need_text(&self, key: &str) -> Result<&str, LoadError> {
        self.text(key)
            .ok_or_else(|| self.wrong(format!("its head has no `{key}`")))
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// A list.
    pub(super) fn list(&self, key: &str) -> Option<&[Value]> {
        match self.value(key)? {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }

    /// A number of any kind.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        number(self.value(key)?)
    }

    /// A number of this kind of model, such as `block_count`.
    pub(super) fn own_number(&self, key: &str) -> Option<f64> {
        number(self.own(key)?)
    }

    /// A text of this kind of model.
    pub(super) fn own_text(&self, key: &str) -> Option<&str> {
        match self.own(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// A count of this kind of model.
    pub(super) fn count(&self, key: &str) -> Option<usize> {
        let same = |values: &[Value]| {
            let first = number(values.first()?)?;
            values
                .iter()
                .all(|value| number(value) == Some(first))
                .then_some(first)
        };
        let found = match self.own(key)? {
            // One for each layer: only where all are the same.
            Value::Array(values) => same(values)?,
            value => number(value)?,
        };
        (found >= 0.0 && found <= f64::from(u32::MAX)).then_some(found as usize)
    }

    pub(super) fn need_count(&self, key: &str) -> Result<usize, LoadError> {
        self.count(key)
            .filter(|count| *count > 0)
            .ok_or_else(|| self.wrong(format!("its head has no usable `{}.{key}`", self.architecture)))
    }

    /// Bytes of all tensors as they are computed with: half floats are widened.
    pub(super) fn weight_bytes(&self) -> u64 {
        let bytes = |tensor: &TensorInfo| {
            let (count, kind) = (tensor.shape.elem_count() as u64, tensor.ggml_dtype);
            match kind {
                GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => count * 4,
                kind => count / kind.block_size() as u64 * kind.type_size() as u64,
            }
        };
        self.content.tensor_infos.values().map(bytes).sum()
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    fn tensor(&mut self, name: &str) -> Result<QTensor, LoadError> {
        self.content
            .tensor(&mut self.reader, name, &Device::Cpu)
            .map_err(|error| LoadError::new(format!("{}: {name}: {error}", self.path.display())))
    }

    /// A matrix, as it lies in the file; half floats are widened. `shape` is (rows, columns); 0: any.
    pub(super) fn matrix(&mut self, name: &str, shape: (usize, usize)) -> Result<QMatMul, LoadError> {
        let tensor = self.tensor(name)?;
        let fits = match *tensor.shape().dims() {
            [rows, columns] => (shape.0 == 0 || shape.0 == rows) && (shape.1 == 0 || shape.1 == columns),
            _ => false,
        };
        if !fits {
            return Err(self.wrong(format!(
                "{name} has the shape {:?}, expected ({}, {})",
                tensor.shape().dims(),
                shape.0,
                shape.1
            )));
        }
        QMatMul::from_arc(Arc::new(tensor)).map_err(|error| self.wrong(format!("{name}: {error}")))
    }

    /// A vector of so many numbers.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name)?;
        let read = || -> candle_core::Result<Vec<f32>> {
            let tensor: Tensor = tensor.dequantize(&Device::Cpu)?;
            tensor.flatten_all()?.to_vec1()
        };
        let found = read().map_err(|error| self.wrong(format!("{name}: {error}")))?;
        if found.len() != len {
            return Err(self.wrong(format!("{name} has {} numbers, expected {len}", found.len())));
        }
        Ok(found)
    }

    /// A vector, if there is one of this name.
    pub(super) fn maybe_vector(&mut self, name: &str, len: usize) -> Result<Option<Vec<f32>>, LoadError> {
        self.has(name).then(|| self.vector(name, len)).transpose()
    }
}

/// A number of any kind.
pub(super) fn number(value: &Value) -> Option<f64> {
    Some(match value {
        Value::U8(n) => f64::from(*n),
        Value::I8(n) => f64::from(*n),
        Value::U16(n) => f64::from(*n),
        Value::I16(n) => f64::from(*n),
        Value::U32(n) => f64::from(*n),
        Value::I32(n) => f64::from(*n),
        Value::U64(n) => *n as f64,
        Value::I64(n) => *n as f64,
        Value::F32(n) => f64::from(*n),
        Value::F64(n) => *n,
        _ => return None,
    })
}
