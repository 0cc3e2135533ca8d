//! An HTTP server that plays an OpenAI-compatible engine: in this process, on its own thread, with a log.
//!
//! ```ignore
//! let server = TestServer::start(|asked| Answer::text(format!("heard: {}", asked.user())));
//! run_chainette(server.url());
//! assert_eq!(server.stats().asked_twice, 0);
//! ```
//! The answer function runs on the server's only thread: it must be quick; slowness is [`Answer::after`].

#[path = "asked.rs"]
mod asked;
#[path = "replying.rs"]
mod replying;
#[path = "sample.rs"]
mod sample;

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

pub use asked::{Answer, Asked, Digest};
use replying::ReplyBody;
pub use sample::{Dice, sample};

/// One line of the server's log, in order of arrival.
#[derive(Clone, Copy, Debug)]
pub struct Logged {
    /// BLAKE3 of the raw body.
    pub digest: Digest,
    /// The number of the try for this row and Step, as the client says.
    pub attempt: u32,
    /// When it arrived.
    pub start: Instant,
    /// When the reply was handed to the socket whole; none while in flight or when it was broken off.
    pub answered: Option<Instant>,
    /// The status sent; 0 until then.
    pub status: u16,
}

/// Counters so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Requests that arrived.
    pub asked: u64,
    /// Requests answered with 200, whole.
    pub answered: u64,
    /// Bodies that arrived more than once, counted once per repetition.
    pub asked_again: u64,
    /// Repetitions of bodies that had been answered with 200, whole.
    pub asked_again_although_answered: u64,
    /// Requests in flight now.
    pub in_flight: usize,
    /// The most there ever were.
    pub max_in_flight: usize,
    /// ∑ in flight × time, in slot-seconds: divide by slots × seconds for the utilisation.
    pub busy_slot_seconds: f64,
    /// Seconds from the first request's arrival to the last end of one.
    pub span_seconds: f64,
}

#[derive(Default)]
struct Book {
    log: Vec<Logged>,
    seen: HashMap<Digest, u32>,
    in_flight: usize,
    max_in_flight: usize,
    busy: f64,
    last_change: Option<Instant>,
    answered: u64,
    file: Option<std::fs::File>,
    /// Requests that arrived, cleared by nothing.
    arrived: u64,
    /// When the first one did.
    first: Option<SystemTime>,
    /// Only the counters are kept: a server that runs for hours does not grow.
    forgets: bool,
}

impl Book {
    fn tick(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last_change {
            self.busy += (now - last).as_secs_f64() * self.in_flight as f64;
        }
        self.last_change = Some(now);
    }

    /// What a benchmark asks for; `first` is in seconds since 1970, null before any request.
    fn totals(&self) -> Value {
        let first = self
            .first
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        json!({
            "asked": self.arrived, "answered": self.answered, "in_flight": self.in_flight,
            "first": first.map(|since| since.as_secs_f64()),
        })
    }

    /// One `write` per line: it stands there whatever kills us next.
    fn note(&mut self, mark: char, digest: &Digest) {
        if let Some(file) = &mut self.file {
            let line = format!("{mark} {}\n", blake3::Hash::from(*digest).to_hex());
            file.write_all(line.as_bytes()).expect("the log can be written");
        }
    }
}

type AnswerFn = dyn Fn(&Asked) -> Answer + Send + Sync;
/// What a page says instead of what it says by itself, by the requests in flight and those that came so far.
type PageFn = dyn Fn(&str, usize, u64) -> Option<Answer> + Send + Sync;

struct Shared {
    book: Mutex<Book>,
    answer: Box<AnswerFn>,
    page: Box<PageFn>,
    /// Events of a stream come one by one, some a little later.
    paced: bool,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running server; stops when dropped.
pub struct TestServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Option<(tokio::sync::oneshot::Sender<()>, JoinHandle<()>)>,
}

impl TestServer {
    /// Starts on a free port.
    pub fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_with(0, None, true, |_, _, _| None, answer)
    }

    /// Starts on a port, with a log file that gets `A digest` at an arrival and `D digest` at an answer.
    pub fn start_on(
        port: u16,
        log: Option<&Path>,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(port, log, false, |_, _, _| None, answer)
    }

    /// The same with other pages.
    pub fn start_with_pages(
        port: u16,
        log: Option<&Path>,
        page: impl Fn(&str, usize, u64) -> Option<Answer> + Send + Sync + 'static,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(port, log, false, page, answer)
    }

    fn start_with(
        port: u16,
        log: Option<&Path>,
        paced: bool,
        page: impl Fn(&str, usize, u64) -> Option<Answer> + Send + Sync + 'static,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let file = log.map(|path| {
            let mut options = std::fs::OpenOptions::new();
            options
                .create(true)
                .append(true)
                .open(path)
                .expect("the log can be opened")
        });
        let book = Book {
            file,
            ..Book::default()
        };
        let shared = Arc::new(Shared {
            book: Mutex::new(book),
            answer: Box::new(answer),
            page: Box::new(page),
            paced,
        });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Self {
            shared,
            address,
            running: None,
        };
        server.restart();
        server
    }

    /// `http://127.0.0.1:PORT/v1`
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The port, kept over restarts.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Keeps counters only from now on; [`Asked::seen`] is then the number of the request.
    pub fn forget(&self) {
        self.shared.book().forgets = true;
    }

    /// Closes the port and every connection; the log stays.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _gone = stop.send(());
            thread.join().expect("the server thread did not panic");
        }
    }

    /// Stops if need be, and listens again on the same port.
    pub fn restart(&mut self) {
        self.stop();
        let listener = TcpListener::bind(self.address).expect("the port is free");
        self.address = listener.local_addr().expect("a bound socket has an address");
        listener
            .set_nonblocking(true)
            .expect("a socket can be made non-blocking");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be built");
            runtime.block_on(async move {
                tokio::select! {
                    () = listen(listener, shared) => {}
                    _ = stopped => {}
                }
            });
        });
        self.running = Some((stop, thread));
    }

    /// Every request so far, in order of arrival.
    pub fn log(&self) -> Vec<Logged> {
        self.shared.book().log.clone()
    }

    /// Requests that arrived since the log was last cleared or taken, and those in flight; cheap.
    pub fn traffic(&self) -> (usize, usize) {
        let book = self.shared.book();
        (book.log.len(), book.in_flight)
    }

    /// The log since it was last taken, given away: a long run's log does not grow. Nothing may be in flight.
    pub fn take_log(&self) -> Vec<Logged> {
        let mut book = self.shared.book();
        assert_eq!(
            book.in_flight, 0,
            "what is in flight would be logged as never answered"
        );
        std::mem::take(&mut book.log)
    }

    /// Requests answered with 200 since the server was made; cheap, for progress.
    pub fn answered(&self) -> u64 {
        self.shared.book().answered
    }

    /// The counters, computed from the log.
    pub fn stats(&self) -> Stats {
        let mut book = self.shared.book();
        book.tick();
        let mut stats = Stats {
            in_flight: book.in_flight,
            max_in_flight: book.max_in_flight,
            busy_slot_seconds: book.busy,
            ..count(&book.log)
        };
        if let Some(first) = book.log.first() {
            let last = book.log.iter().filter_map(|l| l.answered).max();
            stats.span_seconds = last.map_or(0.0, |last| (last - first.start).as_secs_f64());
        }
        stats
    }

    /// Forgets the log and the counters (not what was `seen`).
    pub fn clear_log(&self) {
        let mut book = self.shared.book();
        book.log.clear();
        book.busy = 0.0;
        book.max_in_flight = book.in_flight;
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn count(log: &[Logged]) -> Stats {
    let mut stats = Stats::default();
    let mut answered: HashMap<Digest, bool> = HashMap::new();
    for line in log {
        stats.asked += 1;
        let good = line.status == 200 && line.answered.is_some();
        stats.answered += u64::from(good);
        match answered.get_mut(&line.digest) {
            None => {
                answered.insert(line.digest, good);
            }
            Some(before) => {
                stats.asked_again += 1;
                stats.asked_again_although_answered += u64::from(*before);
                *before |= good;
            }
        }
    }
    stats
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime is running");
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _best_effort = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = hyper::service::service_fn(|request| serve(&shared, request));
            let io = hyper_util::rt::TokioIo::new(stream);
            // A connection that breaks is the client's business, or what the test asked for.
            let _broken = hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// An `Err` makes hyper drop the connection without a reply.
async fn serve(shared: &Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<ReplyBody>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    if head.method == Method::GET {
        let (in_flight, arrived) = {
            let book = shared.book();
            (book.in_flight, book.arrived)
        };
        match (shared.page)(&path, in_flight, arrived) {
            Some(Answer::Status { code, headers, body }) => {
                return Ok(reply(code, &headers, ReplyBody::whole(body.into(), None)));
            }
            Some(Answer::Hang) => return std::future::pending().await,
            Some(_) => return Err(io::ErrorKind::ConnectionReset.into()),
            None => {}
        }
        let (code, body) = match path.as_str() {
            "/health" => (200, json!({"status": "ok"})),
            "/stats" => (200, shared.book().totals()),
            "/v1/models" => (
                200,
                json!({"object": "list", "data": [{"id": "test", "object": "model"}]}),
            ),
            _ => (404, json!({"error": {"message": "no such page"}})),
        };
        return Ok(reply(code, &[], ReplyBody::whole(body.to_string().into(), None)));
    }
    let raw = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let digest = *blake3::hash(&raw).as_bytes();
    let attempt = head
        .headers
        .get("x-chainette-attempt")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let attempt = attempt.unwrap_or(0);
    let (ticket, seen) = Ticket::new(shared, digest, attempt);
    let body = serde_json::from_slice(&raw).unwrap_or_default();
    let asked = Asked {
        path,
        headers: head.headers,
        body,
        raw,
        digest,
        seen,
        attempt,
    };
    let mut answer = (shared.answer)(&asked);
    loop {
        answer = match answer {
            Answer::After(delay, then) => {
                tokio::time::sleep(delay).await;
                *then
            }
            Answer::Once(set, then) => {
                while !set.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                *then
            }
            other => {
                answer = other;
                break;
            }
        };
    }
    let kind = |body: &ReplyBody| [("content-type", body.content_type().to_owned())];
    Ok(match answer {
        Answer::Text {
            content,
            finish_reason,
        } => {
            let body = ReplyBody::completion(&asked, &content, finish_reason, shared.paced, ticket);
            reply(200, &kind(&body), body)
        }
        Answer::Vectors(vectors) => {
            let body = ReplyBody::vectors(&asked, &vectors, ticket);
            reply(200, &kind(&body), body)
        }
        Answer::Status { code, headers, body } => {
            reply(code, &headers, ReplyBody::whole(body.into(), Some(ticket)))
        }
        Answer::Raw(body) => reply(200, &[], ReplyBody::whole(body, Some(ticket))),
        Answer::Drip {
            content,
            bytes,
            every,
        } => {
            let body = ReplyBody::completion(&asked, &content, "stop", false, ticket).drip(bytes, every);
            reply(200, &kind(&body), body)
        }
        Answer::CloseMidBody => {
            let body = ReplyBody::completion(&asked, "cut off", "stop", shared.paced, ticket).half();
            reply(200, &kind(&body), body)
        }
        Answer::Endless(piece) => {
            let body = ReplyBody::endless(&asked, &piece, ticket);
            reply(200, &kind(&body), body)
        }
        Answer::ErrorInside(error) => {
            let body = ReplyBody::completion(&asked, "half a reply", "stop", shared.paced, ticket);
            let (code, body) = body.interrupted(&error);
            reply(code, &kind(&body), body)
        }
        Answer::Hang => std::future::pending().await,
        Answer::Close | Answer::After(..) | Answer::Once(..) => {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    })
}

fn reply(code: u16, headers: &[(&'static str, String)], mut body: ReplyBody) -> Response<ReplyBody> {
    if let Some(ticket) = &mut body.ticket {
        ticket.status = code;
    }
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).expect("a valid status code");
    let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
    for (name, value) in headers.chain([("server", "chainette-test")]) {
        response
            .headers_mut()
            .insert(name, value.parse().expect("a valid header value"));
    }
    response
}

/// A request in flight; its end is written down when this is dropped.
struct Ticket {
    shared: Arc<Shared>,
    index: usize,
    digest: Digest,
    status: u16,
    whole: bool,
}

impl Ticket {
    fn new(shared: &Arc<Shared>, digest: Digest, attempt: u32) -> (Self, u32) {
        let mut book = shared.book();
        book.tick();
        book.in_flight += 1;
        book.max_in_flight = book.max_in_flight.max(book.in_flight);
        book.note('A', &digest);
        let arrived = book.arrived;
        book.arrived += 1;
        book.first.get_or_insert_with(SystemTime::now);
        let index = book.log.len();
        let seen = if book.forgets {
            arrived as u32
        } else {
            book.log.push(Logged {
                digest,
                attempt,
                start: Instant::now(),
                answered: None,
                status: 0,
            });
            let count = book.seen.entry(digest).or_default();
            *count += 1;
            *count - 1
        };
        drop(book);
        let shared = Arc::clone(shared);
        (
            Self {
                shared,
                index,
                digest,
                status: 0,
                whole: false,
            },
            seen,
        )
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut book = self.shared.book();
        book.tick();
        book.in_flight -= 1;
        if self.whole {
            book.note('D', &self.digest);
            book.answered += u64::from(self.status == 200);
            if let Some(line) = book.log.get_mut(self.index).filter(|l| l.digest == self.digest) {
                line.answered = Some(Instant::now());
                line.status = self.status;
            }
        }
    }
}

/// A vector that follows from a text.
pub fn vector_of(text: &str, size: usize) -> Vec<f32> {
    let mut dice = Dice::new(text.as_bytes());
    (0..size)
        .map(|_| dice.below(2001) as f32 / 1000.0 - 1.0)
        .collect()
}

/// The default answer: a value that satisfies the request's schema, a short text, or the vector of a text; a pure
/// function of the body.
pub fn answer_from_schema(asked: &Asked) -> Answer {
    if let Some(text) = asked.input() {
        return Answer::vector(&vector_of(text, 8));
    }
    let mut dice = Dice::new(&asked.raw);
    Answer::text(match asked.schema() {
        Some(schema) => sample(schema, schema, &mut dice, 0).to_string(),
        None => dice.words(6),
    })
}
