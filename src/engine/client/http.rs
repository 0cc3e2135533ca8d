//! One HTTP exchange under its clocks.

use std::error::Error as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::fault;
use super::limits::Limits;
use crate::clock::Clock;
use crate::engine::{BROKEN, CallError, Pressure};
use crate::failpoint;
use crate::row::ErrorKind;
use crate::spec::{EngineSpec, Task, Timeouts};

/// How long an unused connection is kept. Uvicorn (vLLM) closes them after 5 s; writing into one
/// that is just being closed would cost a row a try.
const IDLE: Duration = Duration::from_secs(4);

/// How long the end of a stream may take after its last event.
const DRAIN: Duration = Duration::from_millis(250);

const BAD_ENDPOINT: &str = "`endpoint` must be an http:// or https:// address, like http://127.0.0.1:8000/v1";

const NO_FIRST_BYTE: &str = "no byte of the reply came within `timeout.first_byte`";

/// Talks to one address.
pub(super) struct Http {
    client: reqwest::Client,
    url: reqwest::Url,
    /// Where texts are embedded.
    embeddings: reqwest::Url,
    headers: HeaderMap,
    timeout: Timeouts,
    max_reply: u64,
    /// What must never be shown: the key and the values of the user's headers.
    secrets: Vec<String>,
    /// What the last answer that named limits said of them.
    limits: Mutex<Option<Limits>>,
}

/// An HTTP answer whose body is still to come, whatever its status.
pub(super) struct Incoming {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    response: reqwest::Response,
    timeout: Timeouts,
    max_reply: u64,
    /// Until when the first piece of the body may be awaited; none once it came. A server that queues
    /// a streamed request sends its headers at once.
    first_by: Option<Instant>,
}

impl Http {
    /// A client for [`super::address`]; the error says what is wrong with the declaration.
    pub(super) fn new(spec: &EngineSpec) -> Result<Self, String> {
        let embeddings = super::embeddings_address(spec);
        let http = Self::at(spec, &super::address(spec))?;
        Ok(Self {
            embeddings: reqwest::Url::parse(&embeddings).map_err(|_| BAD_ENDPOINT)?,
            ..http
        })
    }

    /// As [`Http::new`], for another page of the same server.
    pub(super) fn at(spec: &EngineSpec, address: &str) -> Result<Self, String> {
        // The address may carry a password: errors do not repeat it.
        let url = reqwest::Url::parse(address)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
            .ok_or(BAD_ENDPOINT)?;
        let mut secrets = Vec::new();
        let mut headers = HeaderMap::new();
        headers.insert(
            reqwest::header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        for (name, value) in &spec.headers {
            let key = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("`{name}` in `headers` is not a header name"))?;
            headers.insert(
                key,
                secret(value).ok_or(format!("the header `{name}` has a value that HTTP forbids"))?,
            );
            secrets.push(value.clone());
        }
        if let Some(name) = &spec.api_key_env {
            let key = std::env::var(name)
                .ok()
                .map(|key| key.trim().to_owned())
                .filter(|key| !key.is_empty())
                .ok_or(format!(
                    "the environment variable {name} (`api_key_env`) is not set"
                ))?;
            let value = secret(&format!("Bearer {key}")).ok_or(format!(
                "{name} (`api_key_env`) holds characters that HTTP forbids"
            ))?;
            headers.insert(reqwest::header::AUTHORIZATION, value);
            secrets.push(key);
        }
        secrets.extend(url.password().map(Into::into));
        // Short values are no secrets, and replacing them would garble messages.
        secrets.retain(|secret| secret.len() >= 6);
        Ok(Self {
            client: client(&url, spec.timeout.connect)?,
            embeddings: url.clone(),
            url,
            headers,
            timeout: spec.timeout,
            max_reply: spec.max_reply,
            secrets,
            limits: Mutex::default(),
        })
    }

    /// Gets the page: its status and its body.
    pub(super) async fn get(&self) -> Result<(u16, Vec<u8>), CallError> {
        self.in_time(async {
            let incoming = self.send(self.client.get(self.url.clone())).await?;
            Ok((incoming.status, incoming.whole().await?))
        })
        .await
    }

    /// Runs one exchange under the clock of the whole request.
    pub(super) async fn in_time<T>(
        &self,
        exchange: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(self.timeout.total, exchange).await {
            Ok(result) => result,
            Err(_) => Err(late("the reply took longer than `timeout.total`")),
        }
    }

    /// Sends one body, and waits for the head of the answer.
    pub(super) async fn post(&self, task: Task, body: Bytes, turn: u32) -> Result<Incoming, CallError> {
        let url = match task {
            Task::Generate => &self.url,
            Task::Embed => &self.embeddings,
        };
        let request = self.client.post(url.clone());
        self.send(request.header("x-chainette-attempt", turn).body(body))
            .await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Incoming, CallError> {
        let first_by = Instant::now() + self.timeout.first_byte;
        let sending = request.headers(self.headers.clone()).send();
        let response = match tokio::time::timeout_at(first_by, sending).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(broken(&error)),
            Err(_) => return Err(late(NO_FIRST_BYTE)),
        };
        // By the server's own clock, where it says what that shows: ours may be set to anything.
        let wall = || {
            header(&response, "date")
                .and_then(fault::date)
                .unwrap_or_else(Clock::now)
        };
        let retry_after = header(&response, "retry-after-ms")
            .and_then(|ms| ms.trim().parse::<u64>().ok().map(Duration::from_millis))
            .or_else(|| fault::retry_after(header(&response, "retry-after")?, wall()));
        if response
            .headers()
            .keys()
            .any(|name| name.as_str().contains("ratelimit"))
            && let Some(limits) = Limits::read(|name| header(&response, name), Instant::now(), wall())
        {
            *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = Some(limits);
        }
        Ok(Incoming {
            status: response.status().as_u16(),
            retry_after,
            response,
            timeout: self.timeout,
            max_reply: self.max_reply,
            first_by: Some(first_by),
        })
    }

    /// What the last answer that named limits said of them.
    pub(super) fn limits(&self) -> Option<Limits> {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most bytes that a reply may have.
    pub(super) fn max_reply(&self) -> u64 {
        self.max_reply
    }

    /// Takes every secret out of a text that a server sent.
    pub(super) fn redact(&self, text: String) -> String {
        self.secrets.iter().fold(text, |text, secret| {
            if text.contains(secret.as_str()) {
                text.replace(secret.as_str(), "***")
            } else {
                text
            }
        })
    }
}

impl Incoming {
    /// True when the server sends events (`text/event-stream`), asked to or not.
    pub(super) fn is_events(&self) -> bool {
        header(&self.response, "content-type")
            .is_some_and(|kind| kind.trim_start().starts_with("text/event-stream"))
    }

    /// The next piece of the body; none at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, CallError> {
        let by = Instant::now() + self.timeout.between_bytes;
        let by = self.first_by.map_or(by, |first| first.max(by));
        failpoint::hit("engine.awaited").map_err(|error| late(&error.to_string()))?;
        match tokio::time::timeout_at(by, self.response.chunk()).await {
            Ok(Ok(chunk)) => {
                self.first_by = None;
                Ok(chunk)
            }
            Ok(Err(error)) => Err(broken(&error)),
            Err(_) => Err(late(match self.first_by {
                Some(first) if first == by => NO_FIRST_BYTE,
                _ => "the reply paused for longer than `timeout.between_bytes`",
            })),
        }
    }

    /// The whole body.
    pub(super) async fn whole(mut self) -> Result<Vec<u8>, CallError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if (body.len() + chunk.len()) as u64 > self.max_reply {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Reads what is left after the reply's end, so that the connection can be used again; gives up
    /// soon on a server that holds it open.
    pub(super) async fn drain(mut self) {
        let rest = async { while let Ok(Some(_)) = self.response.chunk().await {} };
        let _held_open = tokio::time::timeout(DRAIN, rest).await;
    }
}

/// A reply beyond `max_reply`.
pub(super) fn too_large() -> CallError {
    CallError::Refused {
        kind: ErrorKind::Http,
        message: "the reply is larger than `max_reply`".to_owned(),
    }
}

/// A header value that no log shows.
fn secret(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// The HTTP client. It neither retries nor follows redirects: both would hide what happened.
fn client(url: &reqwest::Url, connect: Duration) -> Result<reqwest::Client, String> {
    let builder = reqwest::Client::builder()
        .http1_only()
        .connect_timeout(connect)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(usize::MAX)
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .user_agent(concat!("chainette/", env!("CARGO_PKG_VERSION")));
    let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let builder = if local { builder.no_proxy() } else { builder };
    let builder = if url.scheme() == "https" {
        // Fails only if someone chose a provider before; then theirs is used.
        let _chosen = rustls::crypto::ring::default_provider().install_default();
        builder
    } else {
        // Without TLS nothing may depend on the machine having certificates.
        builder.tls_backend_preconfigured(no_certificates()?)
    };
    builder
        .build()
        .map_err(|error| format!("cannot set up TLS: {}", root_cause(&error)))
}

/// TLS that trusts nobody, for clients that speak plain HTTP only: nothing then depends on the machine having certificates.
pub(in crate::engine) fn no_certificates() -> Result<rustls::ClientConfig, String> {
    Ok(
        rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth(),
    )
}

fn late(message: &str) -> CallError {
    CallError::Transport {
        kind: ErrorKind::Timeout,
        message: message.to_owned(),
    }
}

/// No connection is the engine's fault and costs the row nothing; one that broke costs a try.
fn broken(error: &reqwest::Error) -> CallError {
    if !error.is_connect() {
        return CallError::Transport {
            kind: ErrorKind::Http,
            message: BROKEN.to_owned(),
        };
    }
    let cause = root_cause(error);
    let lower = cause.to_lowercase();
    if lower.contains("certificate") {
        return CallError::Fatal {
            message: format!("cannot be trusted ({cause}); check `endpoint` and this machine's certificates"),
        };
    }
    // Addresses and operating system codes differ from run to run.
    let message = if error.is_timeout() {
        "no connection within `timeout.connect`"
    } else if lower.contains("refused") {
        "connection refused"
    } else if lower.contains("dns") || lower.contains("lookup") || lower.contains("resolve") {
        "the host name of `endpoint` cannot be resolved"
    } else {
        "no connection"
    };
    CallError::Engine {
        message: message.to_owned(),
        retry_after: None,
        pressure: Pressure::Down,
    }
}

/// The innermost error, which names the cause and no address.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    let mut text = String::new();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    fault::one_line(&text)
}
