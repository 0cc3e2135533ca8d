//! The numbers of a model in safetensors files, read one tensor at a time.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use candle_core::quantized::QMatMul;
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::engine::embedded::LoadError;
use crate::engine::embedded::linear::Linear;
use crate::engine::embedded::math::Norm;

/// The longest head of a file: the format's own limit, in bytes.
const HEAD: u64 = 100_000_000;

/// Bytes that are read at a time.
const PIECE: usize = 4 << 20;

/// The tensors of one or more files, by name.
pub(super) struct Weights {
    files: Vec<(PathBuf, File)>,
    tensors: HashMap<String, Place>,
    /// What stands before the usual names.
    prefix: String,
}

/// Where a tensor lies.
struct Place {
    file: usize,
    start: u64,
    len: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Weights {
    /// Reads the heads of the files. `known` is the end of a name that the model has: what stands before it stands before
    /// all names.
    pub(super) fn open(paths: &[PathBuf], known: &str) -> Result<Self, LoadError> {
        let mut weights = Self {
            files: Vec::new(),
            tensors: HashMap::new(),
            prefix: String::new(),
        };
        for path in paths {
            let unreadable = |why: &dyn std::fmt::Display| {
                LoadError::new(format!(
                    "{} cannot be read: {why}\n  download the model again",
                    path.display()
                ))
            };
            let mut file = File::open(path).map_err(|error| unreadable(&error))?;
            let mut len = [0; 8];
            file.read_exact(&mut len)
                .map_err(|_| unreadable(&"it is no safetensors file"))?;
            let len = u64::from_le_bytes(len);
            let whole = file.metadata().map_err(|error| unreadable(&error))?.len();
            if len > HEAD || len.saturating_add(8) > whole {
                return Err(unreadable(&"it is no safetensors file, or not whole"));
            }
            let mut head = Vec::new();
            (&file)
                .take(len)
                .read_to_end(&mut head)
                .map_err(|error| unreadable(&error))?;
            // Also makes sure that tensors follow each other, and are as long as their shapes say.
            let head: Metadata = serde_json::from_slice(&head).map_err(|error| unreadable(&error))?;
            if (head.data_len() as u64).saturating_add(len + 8) > whole {
                return Err(unreadable(&"it is not whole"));
            }
            for (name, info) in head.tensors() {
                let (start, end) = info.data_offsets;
                let place = Place {
                    file: weights.files.len(),
                    start: len + 8 + start as u64,
                    len: end - start,
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                };
                weights.tensors.insert(name, place);
            }
            weights.files.push((path.clone(), file));
        }
        if !weights.tensors.contains_key(known) {
            let end = format!(".{known}");
            let names = weights.tensors.keys();
            let mut found: Vec<&str> = names.filter_map(|name| name.strip_suffix(&end)).collect();
            found.sort_unstable();
            weights.prefix = match found.as_slice() {
                [only] => format!("{only}."),
                [] => return Err(weights.wrong(format!("there is no `{known}`"))),
                several => {
                    let file = paths.first().map(|path| path.display().to_string());
                    return Err(LoadError::new(format!(
                        "{}: there are several encoders: {}\n  name the folder of a model that has one",
                        file.unwrap_or_default(),
                        several.join(", ")
                    )));
                }
            };
        }
        Ok(weights)
    }

    /// Bytes of all tensors as they are computed with, in 32 bits a number.
    pub(super) fn bytes(&self) -> u64 {
        let numbers = |place: &Place| place.shape.iter().map(|n| *n as u64).product::<u64>();
        self.tensors.values().map(|place| numbers(place) * 4).sum()
    }

    /// An error about all of it.
    pub(super) fn wrong(&self, what: impl std::fmt::Display) -> LoadError {
        let folder = self.files.first().and_then(|(path, _)| path.parent());
        let folder = folder.unwrap_or(Path::new("")).display();
        LoadError::new(format!(
            "the weights in {folder}: {what}\n  they do not fit `config.json`: download the model again"
        ))
    }

    fn place(&self, name: &str) -> Option<&Place> {
        self.tensors.get(&format!("{}{name}", self.prefix))
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    /// Rows of a matrix, whose columns must be so many.
    pub(super) fn rows(&self, name: &str, columns: usize) -> Result<usize, LoadError> {
        match self.place(name).map(|place| place.shape.as_slice()) {
            Some([rows, found]) if *found == columns => Ok(*rows),
            Some(shape) => Err(self.wrong(format!(
                "{name} has the shape {shape:?}, expected rows of {columns}"
            ))),
            None => Err(self.wrong(format!("there is no `{name}`"))),
        }
    }

    /// The numbers of a tensor of this shape.
    pub(super) fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let place = self
            .place(name)
            .ok_or_else(|| self.wrong(format!("there is no `{name}`")))?;
        if place.shape != shape {
            return Err(self.wrong(format!(
                "{name} has the shape {:?}, expected {shape:?}",
                place.shape
            )));
        }
        let Some((path, file)) = self.files.get(place.file) else {
            return Ok(Vec::new());
        };
        let dtype = match place.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(LoadError::new(format!(
                    "{}: {name} is of the type {other:?}\n  take weights of the types F32, F16 or BF16",
                    path.display()
                )));
            }
        };
        let unreadable = |error: &dyn std::fmt::Display| {
            LoadError::new(format!(
                "{} cannot be read: {name}: {error}\n  make it readable for yourself, or download it again",
                path.display()
            ))
        };
        // A piece after the other: a large table is not in memory twice.
        let mut numbers = Vec::with_capacity(shape.iter().product());
        let mut bytes = vec![0; PIECE.min(place.len)];
        let mut done = 0;
        while done < place.len {
            let piece = bytes.get_mut(..PIECE.min(place.len - done)).unwrap_or_default();
            file.read_exact_at(piece, place.start + done as u64)
                .map_err(|error| unreadable(&error))?;
            let count = piece.len() / dtype.size_in_bytes();
            let widened = Tensor::from_raw_buffer(piece, dtype, &[count], &Device::Cpu)
                .and_then(|piece| piece.to_dtype(DType::F32)?.to_vec1::<f32>())
                .map_err(|error| unreadable(&error))?;
            numbers.extend_from_slice(&widened);
            done += piece.len();
        }
        Ok(numbers)
    }

    /// `name.weight`, of (rows, columns), and `name.bias`, if there is one.
    pub(super) fn linear(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, LoadError> {
        let weight = self.numbers(&format!("{name}.weight"), &[rows, columns])?;
        let weight = Tensor::from_vec(weight, (rows, columns), &Device::Cpu)
            .map_err(|error| self.wrong(format!("{name}: {error}")))?;
        let bias = format!("{name}.bias");
        let bias = self
            .has(&bias)
            .then(|| self.numbers(&bias, &[rows]))
            .transpose()?;
        Ok(Linear::new(QMatMul::Tensor(weight), bias))
    }

    /// `name.weight` and `name.bias` of a norm; old files call them `gamma` and `beta`.
    pub(super) fn norm(&self, name: &str, len: usize, eps: f32) -> Result<Norm, LoadError> {
        let [weight, bias] = match self.has(&format!("{name}.weight")) {
            true => ["weight", "bias"],
            false => ["gamma", "beta"],
        };
        Ok(Norm::Layer {
            weight: self.numbers(&format!("{name}.{weight}"), &[len])?,
            bias: self.numbers(&format!("{name}.{bias}"), &[len])?,
            eps,
        })
    }
}
