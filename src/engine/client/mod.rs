//! Adapters: one per wire protocol.

pub mod limits;
pub mod ollama;
pub mod openai;
pub mod probe;
pub mod schema;
pub mod subset;

mod dialect;
mod draft;
mod embeddings;
mod events;
mod fault;
mod http;
mod merge;
mod restore;
mod connection;

use std::sync::Arc;

pub(in crate::engine) use http::no_certificates;

use crate::engine::{SetupError, SharedEngine};
use crate::spec::{Backend, EngineSpec};

/// The adapter for a declared engine. Reads the API key from the environment, connects to nothing. Without an
/// `endpoint` it prepares and renders, and has nobody to call.
///
/// # Errors
/// A declaration that cannot work: no such environment variable, no valid address.
pub fn adapter(spec: &EngineSpec) -> Result<SharedEngine, SetupError> {
    Ok(match spec.backend {
        Backend::Ollama => Arc::new(ollama::Ollama::new(spec)?),
        Backend::OpenAi | Backend::Vllm | Backend::LlamaCpp | Backend::Tgi => {
            Arc::new(openai::OpenAi::new(spec)?)
        }
        #[cfg(feature = "embedded")]
        Backend::Embedded => Arc::new(crate::engine::embedded::InProcess::rendering(spec)),
        #[cfg(not(feature = "embedded"))]
        Backend::Embedded => {
            return Err(SetupError {
                engine: spec.name.clone(),
                message: "this chainette was built without models in its own process".to_owned(),
            });
        }
        Backend::Custom => {
            return Err(SetupError {
                engine: spec.name.clone(),
                message: "is one of the program's own; give it with `Broker::with_engine`".to_owned(),
            });
        }
    })
}

/// As [`adapter`], for a server that chainette runs: `seen` is called whenever a part of a streamed reply comes in.
///
/// # Errors
/// As for [`adapter`].
pub(crate) fn watched(
    spec: &EngineSpec,
    seen: impl Fn() + Send + Sync + 'static,
) -> Result<SharedEngine, SetupError> {
    Ok(Arc::new(openai::OpenAi::new(spec)?.watched(Arc::new(seen))))
}

/// Where an engine's requests go: `endpoint`, with what its user left out.
///
/// `openai` takes the address as it is and adds `/v1` only to a bare host; `vllm`, `llamacpp` and `tgi`
/// serve chat completions below `/v1`, which is added unless it is there; Ollama's own API stands
/// beside its `/v1`, which is taken off.
pub fn address(spec: &EngineSpec) -> String {
    completed(spec, path)
}

/// Where an engine is asked for the vectors of texts: `/embeddings` beside `/chat/completions`, and Ollama's
/// `/api/embed` beside `/api/chat`.
pub fn embeddings_address(spec: &EngineSpec) -> String {
    completed(spec, |backend, endpoint| {
        let base = endpoint.trim_end_matches('/');
        let base = base
            .strip_suffix("/embeddings")
            .or_else(|| base.strip_suffix("/embed"));
        let chat = path(backend, base.unwrap_or(endpoint));
        match chat.strip_suffix("/chat/completions") {
            Some(base) => format!("{base}/embeddings"),
            None => format!("{}/embed", chat.strip_suffix("/chat").unwrap_or(&chat)),
        }
    })
}

/// An engine's address, its path completed.
fn completed(spec: &EngineSpec, path: impl Fn(Backend, &str) -> String) -> String {
    let endpoint = spec.endpoint.as_deref().unwrap_or_default();
    match endpoint.split_once('?') {
        // `?api-version=…` stays at the end.
        Some((endpoint, query)) => format!("{}?{query}", path(spec.backend, endpoint)),
        None => path(spec.backend, endpoint),
    }
}

/// The address of conversations, without its query.
fn path(backend: Backend, endpoint: &str) -> String {
    let base = endpoint.trim_end_matches('/');
    let bare = base.split_once("://").is_none_or(|(_, rest)| !rest.contains('/'));
    let chat = base.strip_suffix("/chat/completions").unwrap_or(base);
    match backend {
        Backend::Ollama => {
            let own = base.strip_suffix("/chat").unwrap_or(chat);
            let root = own.strip_suffix("/api").or_else(|| own.strip_suffix("/v1"));
            format!("{}/api/chat", root.unwrap_or(own))
        }
        Backend::OpenAi if !bare => format!("{chat}/chat/completions"),
        _ if chat.ends_with("/v1") => format!("{chat}/chat/completions"),
        _ => format!("{chat}/v1/chat/completions"),
    }
}
