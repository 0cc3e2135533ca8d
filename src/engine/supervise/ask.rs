//! What a server says of itself, asked briefly over HTTP. Nothing is generated.

use std::time::Duration;

use serde_json::Value;

use crate::engine::client::no_certificates;
use crate::engine::provision::PreparedEngine;
use crate::spec::Backend;

/// The longest page that is read, in bytes.
const MOST: usize = 4 << 20;
/// The longest version that is repeated, in characters.
const VERSION: usize = 120;

/// Asks one server. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    client: reqwest::Client,
    root: String,
    backend: Option<Backend>,
}

/// What a look at `/health` gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// 200.
    Ready,
    /// There is somebody, and it is not ready; what it said.
    NotYet(String),
    /// Nobody listens.
    Nobody,
    /// No answer in time.
    Silent,
}

/// What a server's pages say of it.
#[derive(Clone, Debug, Default)]
pub(super) struct About {
    /// Its version.
    pub(super) version: Option<String>,
    /// Requests that it works on at the same time.
    pub(super) slots: Option<usize>,
    /// `/metrics` is there.
    pub(super) metrics: bool,
}

impl Ask {
    /// For a server on this machine; every question is a connection of its own, so that none keeps the server from
    /// ending.
    pub(super) fn new(prepared: &PreparedEngine) -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .tls_backend_preconfigured(no_certificates()?)
            .user_agent(concat!("chainette/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| error.to_string())?;
        let url = prepared.url();
        let url = url.trim_end_matches('/');
        Ok(Self {
            client,
            root: url.strip_suffix("/v1").unwrap_or(url).to_owned(),
            backend: prepared.protocol(),
        })
    }

    /// Gets a page: its status and body.
    async fn page(&self, path: &str, patience: Duration) -> Result<(u16, Vec<u8>), Health> {
        let exchange = async {
            let mut response = self.client.get(format!("{}{path}", self.root)).send().await?;
            let status = response.status().as_u16();
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                body.extend_from_slice(&chunk);
                if body.len() > MOST {
                    break;
                }
            }
            Ok((status, body))
        };
        match tokio::time::timeout(patience, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err::<_, reqwest::Error>(error)) if error.is_connect() => Err(Health::Nobody),
            Ok(Err(_)) => Err(Health::NotYet("it broke the connection".to_owned())),
            Err(_) => Err(Health::Silent),
        }
    }

    /// Looks at `/health`.
    pub(super) async fn health(&self, patience: Duration) -> Health {
        match self.page("/health", patience).await {
            Ok((200, _)) => Health::Ready,
            Ok((status, body)) => Health::NotYet(said(status, &body)),
            Err(health) => health,
        }
    }

    async fn json(&self, path: &str, patience: Duration) -> Option<Value> {
        let (status, body) = self.page(path, patience).await.ok()?;
        let page = (status == 200).then(|| serde_json::from_slice(&body).ok());
        page.flatten()
    }

    async fn metrics(&self, patience: Duration) -> Option<String> {
        let (status, body) = self.page("/metrics", patience).await.ok()?;
        (status == 200).then(|| String::from_utf8_lossy(&body).into_owned())
    }

    /// What its pages say of it, each waited for so long at most.
    pub(super) async fn about(&self, patience: Duration) -> About {
        let page = match self.backend {
            Some(Backend::LlamaCpp) => "/props",
            Some(Backend::Tgi) => "/info",
            _ => "/version",
        };
        let (page, metrics) = tokio::join!(self.json(page, patience), self.metrics(patience));
        let text = |name: &str| page.as_ref()?.get(name)?.as_str().map(plain);
        let number = |name: &str| page.as_ref()?.get(name)?.as_u64();
        let (version, slots) = match self.backend {
            Some(Backend::LlamaCpp) => (text("build_info"), number("total_slots")),
            Some(Backend::Tgi) => (text("version"), number("max_concurrent_requests")),
            _ => (text("version"), None),
        };
        About {
            version: version.filter(|version| !version.trim().is_empty()),
            slots: slots
                .and_then(|slots| usize::try_from(slots).ok())
                .filter(|slots| *slots > 0),
            metrics: metrics.is_some(),
        }
    }

    /// All that changes when the server gets on with its work, and only then; none where it cannot be seen.
    pub(super) async fn counters(&self, patience: Duration) -> Option<String> {
        match self.backend? {
            Backend::LlamaCpp => {
                let (slots, metrics) = tokio::join!(self.json("/slots", patience), self.metrics(patience));
                let slots = slots.as_ref().and_then(slots_at);
                let totals = metrics.and_then(|text| totals(&text, LLAMA_CPP));
                match (slots, totals) {
                    (None, None) => None,
                    (slots, totals) => Some(slots.unwrap_or_default() + &totals.unwrap_or_default()),
                }
            }
            Backend::Vllm => totals(&self.metrics(patience).await?, VLLM),
            Backend::Tgi => totals(&self.metrics(patience).await?, TGI),
            _ => None,
        }
    }
}

/// Counters of llama.cpp that tell of work: tokens, and calls of `llama_decode`.
const LLAMA_CPP: &[&str] = &[
    "llamacpp:prompt_tokens_total",
    "llamacpp:tokens_predicted_total",
    "llamacpp:n_decode_total",
];
/// Those of vLLM.
const VLLM: &[&str] = &["vllm:prompt_tokens_total", "vllm:generation_tokens_total"];
/// Those of TGI: batches that were worked off.
const TGI: &[&str] = &["tgi_batch_inference_success", "tgi_request_success"];

/// The lines of these counters in a page of metrics; none if it has none of them.
fn totals(page: &str, names: &[&str]) -> Option<String> {
    let named = |line: &&str| {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        names.contains(&name)
    };
    let lines: Vec<&str> = page.lines().filter(named).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Where llama.cpp's slots are: which work on what, and how far they came.
fn slots_at(page: &Value) -> Option<String> {
    let slots = page.as_array()?;
    let at = |slot: &Value| {
        let own = [
            "id_task",
            "is_processing",
            "n_decoded",
            "n_past",
            "n_prompt_tokens_processed",
        ];
        let next = slot.get("next_token");
        // An object in older versions, a list in newer ones.
        let next = next
            .map(|next| next.get(0).unwrap_or(next))
            .and_then(|next| next.get("n_decoded"));
        let own = own.map(|name| slot.get(name).cloned().unwrap_or_default());
        format!("{own:?} {next:?}\n")
    };
    Some(slots.iter().map(at).collect())
}

/// `HTTP 503: Loading model`.
fn said(status: u16, body: &[u8]) -> String {
    let message = serde_json::from_slice::<Value>(body).ok().and_then(|body| {
        let message = body.pointer("/error/message").or_else(|| body.get("message"));
        message.and_then(Value::as_str).map(plain)
    });
    match message {
        Some(message) => format!("HTTP {status}: {message}"),
        None => format!("HTTP {status}"),
    }
}

/// A server's text, safe to show.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(VERSION).collect()
}
