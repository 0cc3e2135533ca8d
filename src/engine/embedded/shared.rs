//! What all workers of a model share, for as long as there is one.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::LoadError;

/// Read once, and again when nobody has it any more.
#[derive(Debug)]
pub(super) struct Shared<T>(Mutex<Weak<T>>);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Shared<T> {
    /// What another worker has, or what `read` gives.
    pub(super) fn get(&self, read: impl FnOnce() -> Result<T, LoadError>) -> Result<Arc<T>, LoadError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = held.upgrade() {
            return Ok(there);
        }
        let read = Arc::new(read()?);
        *held = Arc::downgrade(&read);
        Ok(read)
    }
}
