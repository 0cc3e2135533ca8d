//! Adapters: one per wire protocol.

pub mod openai;
pub mod probe;
pub mod schema;

mod fault;
mod http;
mod merge;
mod restore;
