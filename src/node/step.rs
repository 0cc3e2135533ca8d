//! A Step: prompt → engine → reply → output, asked again where that can help.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::answer::{Answer, AnswerKey, Answers};
use super::cpu;
use super::dimension::Dimension;
use super::memory::{Known, Memory};
use super::reply;
use super::retry::Tries;
use crate::engine::broker::Broker;
use crate::engine::client::schema::PreparedSchema;
use crate::engine::{CallError, Chat, Finish, Message, Rendered, Reply, Request, Role, SharedEngine, Stop};
use crate::event::{Exchange, Usage};
use crate::expr::model::Model;
use crate::plan::{EngineIx, Node, StepPlan};
use crate::row::{ErrorKind, Record, RowError, RowId, write_str};
use crate::spec::{OnError, Retries, Sampling, Task};

/// One Step of a plan, ready to ask.
pub struct Step {
    node: String,
    engine: EngineIx,
    adapter: SharedEngine,
    broker: Arc<Broker>,
    answers: Arc<dyn Answers>,
    task: Task,
    schema: Option<PreparedSchema>,
    sampling: Sampling,
    retries: Retries,
    /// A failure is a row's, not a null.
    can_fail: bool,
    /// A reply has run away: from now on replies are streamed, so that the next one is cut early.
    ran_away: AtomicBool,
    /// Of its vectors.
    dimension: Dimension,
}

/// What a Step is made of, for callers without a plan.
#[derive(Clone, Debug)]
pub struct StepSettings {
    /// The Step's id.
    pub node: String,
    /// Who answers.
    pub engine: EngineIx,
    /// What it asks for.
    pub task: Task,
    /// The output model's JSON Schema; none for free text and for vectors.
    pub schema: Option<serde_json::Value>,
    /// Sampling of the first try.
    pub sampling: Sampling,
    /// How often to ask again.
    pub retries: Retries,
    /// What a failure is: only one that fails its row is ever given up for new tries ([`Answers::again`]).
    pub on_error: OnError,
}

/// One row's question.
#[derive(Debug)]
pub struct Question<'a> {
    /// The row.
    pub row_id: &'a RowId,
    /// The rendered system prompt.
    pub system: Option<String>,
    /// The rendered user prompt, or the text to embed.
    pub user: String,
    /// The node's output model, which the reply is checked against.
    pub model: Option<&'a Model>,
}

/// What came of a row at a Step.
#[derive(Clone, Debug)]
pub struct StepOutcome {
    /// The output with the engine's reasoning text, or why there is none.
    pub result: Result<(Record, Option<Arc<str>>), RowError>,
    /// Tokens of all tries.
    pub usage: Usage,
    /// From lease to answer, summed over the tries; none when every answer came from the ledger.
    pub took: Option<Duration>,
    /// How many numbers a vector of this Step has, where that decided on a reply; 0 else.
    pub dimension: u32,
}

/// What schemas are called on the wire, where they must have a name. Not by the Step's: a Step that is renamed asks the same.
const SCHEMA_NAME: &str = "output";
/// The longest part of a bad reply that is shown to the model again, in characters.
const MAX_QUOTE: usize = 2_000;

/// The turn and the request's digest of an answer that was on file.
type Found = (u32, [u8; 32]);

/// One try's answer.
struct Turn {
    answer: Answer,
    /// From lease to answer; none if it was on file.
    took: Option<Duration>,
    /// It came just now, not on a former walk of the row.
    fresh: bool,
}

/// What to do after a reply.
enum Verdict {
    Done(Record),
    Again,
    Failed(ErrorKind, String),
}

impl Step {
    /// Sets up a plan's Step; none if the broker does not know its engine.
    pub fn new(node: &Node, step: &StepPlan, broker: Arc<Broker>, answers: Arc<dyn Answers>) -> Option<Self> {
        let settings = StepSettings {
            node: node.id.clone(),
            engine: step.engine,
            task: step.task,
            schema: node
                .model
                .as_ref()
                .filter(|_| !step.free_text && step.task == Task::Generate)
                .map(|model| model.schema().clone()),
            sampling: step.sampling.clone(),
            retries: step.retries,
            on_error: step.on_error,
        };
        Self::from_settings(settings, broker, answers)
    }

    /// Sets up a Step without a plan; none if the broker does not know its engine.
    pub fn from_settings(
        settings: StepSettings,
        broker: Arc<Broker>,
        answers: Arc<dyn Answers>,
    ) -> Option<Self> {
        let adapter = Arc::clone(broker.engine(settings.engine)?);
        let schema = settings
            .schema
            .as_ref()
            .map(|schema| adapter.prepare(SCHEMA_NAME, schema));
        Some(Self {
            node: settings.node,
            engine: settings.engine,
            adapter,
            broker,
            answers,
            task: settings.task,
            schema,
            sampling: settings.sampling,
            retries: settings.retries,
            can_fail: settings.on_error == OnError::FailRow,
            ran_away: AtomicBool::new(false),
            dimension: Dimension::default(),
        })
    }

    /// Takes vectors of so many numbers only, as those that were written before; 0 takes those of the first reply.
    #[must_use]
    pub fn with_dimension(mut self, dimension: u32) -> Self {
        self.dimension = Dimension::of(dimension);
        self
    }

    /// The request of a row's first try (also what `--dry-run` shows).
    pub fn first_request(&self, system: Option<&str>, user: &str) -> Rendered {
        match self.task {
            Task::Generate => self.render(&first_messages(system, user), &self.sampling),
            Task::Embed => self.adapter.render(&Request::Embed { input: user }),
        }
    }

    /// Asks until there is an output or the row has failed. Answers that the ledger has are not
    /// asked for again; every new one is kept before it is used.
    ///
    /// # Errors
    /// [`Stop`], when the run cannot go on; the row then has no fate yet.
    pub async fn ask(&self, question: Question<'_>) -> Result<StepOutcome, Stop> {
        self.ask_with(question, None).await
    }

    /// As [`Step::ask`]; what the row remembers of a former walk is not asked for either.
    pub(super) async fn ask_with(
        &self,
        question: Question<'_>,
        memory: Option<&Memory>,
    ) -> Result<StepOutcome, Stop> {
        loop {
            let (outcome, found) = self.talk(&question, memory).await?;
            let Some((turn, digest)) = found.filter(|_| self.can_fail && outcome.result.is_err()) else {
                return Ok(outcome);
            };
            let key = AnswerKey {
                node: &self.node,
                row_id: question.row_id,
                turn,
                digest,
            };
            let again = self.answers.again(&key);
            if !again.map_err(|error| self.unwritten(error))? {
                return Ok(outcome);
            }
            if let Some(memory) = memory {
                memory.forget(&key);
            }
        }
    }

    /// Asks as [`Step::ask`] does; also tells the turn and the request of the last answer if that was found.
    async fn talk(
        &self,
        question: &Question<'_>,
        memory: Option<&Memory>,
    ) -> Result<(StepOutcome, Option<Found>), Stop> {
        let mut messages = first_messages(question.system.as_deref(), &question.user);
        let mut talk = Talk {
            base: messages.len(),
            tries: Tries::default(),
            usage: Usage::default(),
            took: None,
            last: None,
            dimension: 0,
        };
        loop {
            let rendered = match self.task {
                Task::Generate => self.render(&messages, &talk.tries.sampling(&self.sampling)),
                Task::Embed => self.adapter.render(&Request::Embed {
                    input: &question.user,
                }),
            };
            let turn = self.turn(question, talk.tries.turn, &rendered, memory).await?;
            let Turn { answer, took, fresh } = turn;
            let found = took.is_none().then_some((talk.tries.turn, rendered.digest));
            talk.tries.turn += 1;
            if let Some(took) = took {
                *talk.took.get_or_insert_default() += took;
            }
            match answer {
                Answer::Refused { kind, message } => return Ok((talk.failed(kind, message), found)),
                Answer::Fault { kind, message } => {
                    talk.tries.faults += 1;
                    if talk.tries.faults > self.retries.transport {
                        return Ok((talk.failed(kind, message), found));
                    }
                    if fresh {
                        self.broker.pause(talk.tries.pause(), &message).await?;
                    }
                }
                Answer::Reply(reply) => {
                    talk.tries.replies += 1;
                    talk.usage += reply.usage;
                    let verdict = match self.task {
                        Task::Generate => self.judge(&mut talk, &mut messages, &reply, question.model),
                        Task::Embed => self.judge_vector(&mut talk, &reply),
                    };
                    if let Some(took) = took.filter(|_| fresh) {
                        self.tell(question, talk.tries.turn, took, || replied(&verdict, &reply));
                    }
                    match verdict {
                        Verdict::Done(record) => {
                            let outcome = StepOutcome {
                                result: Ok((record, reply.reasoning.map(Into::into))),
                                usage: talk.usage,
                                took: talk.took,
                                dimension: talk.dimension,
                            };
                            return Ok((outcome, found));
                        }
                        Verdict::Again => talk.last = self.shown(reply.text),
                        Verdict::Failed(kind, message) => {
                            talk.last = self.shown(reply.text);
                            return Ok((talk.failed(kind, message), found));
                        }
                    }
                }
            }
        }
    }

    fn render(&self, messages: &[Message], sampling: &Sampling) -> Rendered {
        self.adapter.render(&Request::Chat(Chat {
            messages,
            schema: self.schema.as_ref(),
            sampling,
            stream: self.ran_away.load(Ordering::Relaxed),
        }))
    }

    /// One try: remembered, else from the ledger, else live.
    async fn turn(
        &self,
        question: &Question<'_>,
        turn: u32,
        rendered: &Rendered,
        memory: Option<&Memory>,
    ) -> Result<Turn, Stop> {
        let key = AnswerKey {
            node: &self.node,
            row_id: question.row_id,
            turn,
            digest: rendered.digest,
        };
        if let Some(Known { answer, took, .. }) = memory.and_then(|memory| memory.find(&key)) {
            return Ok(Turn {
                answer,
                took,
                fresh: false,
            });
        }
        let found = self.answers.find(&key);
        if let Some(answer) = found.map_err(|error| self.unwritten(error))? {
            if let Some(memory) = memory {
                memory.keep(&key, &answer, None);
            }
            return Ok(Turn {
                answer,
                took: None,
                fresh: false,
            });
        }
        // The lease is held until the answer is on file: after a kill no more than the engine's
        // concurrency is asked again.
        let mut faults = 0;
        let (answer, _lease, asked) = loop {
            // Rows queue up while they are still led; the call itself is not for the CPU pool.
            let lease = self
                .broker
                .acquire(self.engine, question.row_id.ordinal(), faults, rendered.digest)
                .await?;
            cpu::leave().await;
            let asked = Instant::now();
            match lease.call(rendered, turn).await {
                Ok(reply) => break (Answer::Reply(reply), lease, asked),
                Err(CallError::Transport { kind, message }) => {
                    self.tell(question, turn + 1, asked.elapsed(), || told("failed", &message));
                    break (Answer::Fault { kind, message }, lease, asked);
                }
                Err(CallError::Refused { kind, message }) => {
                    self.tell(question, turn + 1, asked.elapsed(), || told("refused", &message));
                    break (Answer::Refused { kind, message }, lease, asked);
                }
                // The gate knows: the next lease comes when the engine is back, or never.
                Err(CallError::Engine { message, .. } | CallError::Fatal { message }) => {
                    faults += 1;
                    self.tell(question, turn + 1, asked.elapsed(), || told("engine", &message));
                }
            }
        };
        let took = asked.elapsed();
        let kept = self.answers.keep(key, &answer).await;
        kept.map_err(|error| self.unwritten(error))?;
        if let Some(memory) = memory {
            memory.keep(&key, &answer, Some(took));
        }
        Ok(Turn {
            answer,
            took: Some(took),
            fresh: true,
        })
    }

    /// Stops the run: whoever asks next would lose the answer as well.
    fn unwritten(&self, error: std::io::Error) -> Stop {
        self.broker.stop();
        Stop::Ledger(Arc::new(error))
    }

    /// Tells those who want to see every request (`--verbose`).
    fn tell(&self, question: &Question<'_>, attempt: u32, took: Duration, what: impl FnOnce() -> Exchange) {
        self.broker.tell(self.engine, || Exchange {
            node: self.node.clone(),
            row_id: question.row_id.to_string(),
            attempt,
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            ..what()
        });
    }

    /// Decides on a reply, and sets up the next try if there is one.
    fn judge(
        &self,
        talk: &mut Talk,
        messages: &mut Vec<Message>,
        reply: &Reply,
        model: Option<&Model>,
    ) -> Verdict {
        if reply.finish == Finish::Rejected {
            let problem = format!("the engine rejected its own output: {}", reply.text);
            return self.bad(talk, ErrorKind::InvalidOutput, problem);
        }
        let problem = match (&self.schema, reply.finish) {
            (None, Finish::Length | Finish::Runaway) => None,
            (None, _) => match text_record(&reply.text) {
                Ok(record) => return Verdict::Done(record),
                Err(problem) => Some(problem),
            },
            (Some(schema), _) => match output(schema, model, &reply.text) {
                Ok(record) => return Verdict::Done(record),
                Err(problem) => Some(problem),
            },
        };
        if matches!(reply.finish, Finish::Length | Finish::Runaway) {
            if ran_away(reply) {
                self.ran_away.store(true, Ordering::Relaxed);
                talk.tries.runaways += 1;
                let message = "the reply ran in white space or repetition until it was cut";
                if talk.tries.runaways > 1 {
                    return Verdict::Failed(ErrorKind::Runaway, message.to_owned());
                }
                return self.bad(talk, ErrorKind::Runaway, message.to_owned());
            }
            if talk.tries.doubled.is_some() {
                return Verdict::Failed(
                    ErrorKind::Truncated,
                    "the reply was cut at its token limit, and again at twice that limit".to_owned(),
                );
            }
            talk.tries.double(&self.sampling, reply.usage.completion_tokens);
            return Verdict::Again;
        }
        let problem = problem.unwrap_or_default();
        let verdict = self.bad(talk, ErrorKind::InvalidOutput, problem.clone());
        if matches!(verdict, Verdict::Again) {
            messages.truncate(talk.base);
            messages.push(Message {
                role: Role::Assistant,
                content: reply.text.chars().take(MAX_QUOTE).collect(),
            });
            messages.push(Message {
                role: Role::User,
                content: format!(
                    "Your reply was not valid: {problem}. Reply again with only the corrected JSON."
                ),
            });
        }
        verdict
    }

    /// Decides on a reply that is to hold a vector. One that does not is asked for again as it was: there is nothing to
    /// tell the model, but the next reply may be another.
    fn judge_vector(&self, talk: &mut Talk, reply: &Reply) -> Verdict {
        let (dimension, held) = self.dimension.output(reply);
        talk.dimension = talk.dimension.max(dimension);
        match held {
            Ok(record) => Verdict::Done(record),
            Err(problem) => self.bad(talk, ErrorKind::InvalidOutput, problem),
        }
    }

    /// A reply as `errors/` shows it: a vector tells nobody anything that the message does not.
    fn shown(&self, reply: String) -> Option<String> {
        Some(reply).filter(|_| self.task == Task::Generate)
    }

    /// Counts a bad reply.
    fn bad(&self, talk: &mut Talk, kind: ErrorKind, problem: String) -> Verdict {
        talk.tries.bad += 1;
        if talk.tries.bad > self.retries.output {
            return Verdict::Failed(kind, problem);
        }
        Verdict::Again
    }
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Step({})", self.node)
    }
}

/// True when a reply that was cut ran in white space or repetition.
fn ran_away(reply: &Reply) -> bool {
    let thoughts = reply.reasoning.as_deref().filter(|_| reply.text.is_empty());
    reply.finish == Finish::Runaway || reply::is_runaway(thoughts.unwrap_or(&reply.text))
}

/// One row's conversation so far.
struct Talk {
    /// Messages of the question itself.
    base: usize,
    tries: Tries,
    usage: Usage,
    /// From lease to answer, over all tries that were live.
    took: Option<Duration>,
    /// The last reply's text.
    last: Option<String>,
    /// See [`StepOutcome::dimension`].
    dimension: u32,
}

impl Talk {
    fn failed(self, kind: ErrorKind, message: String) -> StepOutcome {
        StepOutcome {
            result: Err(RowError {
                kind,
                message,
                attempts: Some(self.tries.replies),
                reply: self.last,
            }),
            usage: self.usage,
            took: self.took,
            dimension: self.dimension,
        }
    }
}

/// What a reply was good for.
fn replied(verdict: &Verdict, reply: &Reply) -> Exchange {
    let (status, problem) = match verdict {
        Verdict::Done(_) => ("answered", None),
        Verdict::Again => ("bad_reply", None),
        Verdict::Failed(_, problem) => ("bad_reply", Some(problem.clone())),
    };
    Exchange {
        status,
        problem,
        usage: reply.usage,
        ..Exchange::default()
    }
}

/// What came instead of a reply.
fn told(status: &'static str, problem: &str) -> Exchange {
    Exchange {
        status,
        problem: Some(problem.to_owned()),
        ..Exchange::default()
    }
}

fn first_messages(system: Option<&str>, user: &str) -> Vec<Message> {
    let message = |role, content: &str| Message {
        role,
        content: content.to_owned(),
    };
    system
        .map(|text| message(Role::System, text))
        .into_iter()
        .chain([message(Role::User, user)])
        .collect()
}

/// A reply as the Step's output; the error is the problem in one line.
fn output(schema: &PreparedSchema, model: Option<&Model>, text: &str) -> Result<Record, String> {
    let value = schema.restore(&reply::extract(text)?);
    let record = Record::parse(&value).map_err(|error| error.to_string())?;
    if let Some(model) = model {
        model.validate(&record.to_json())?;
    }
    Ok(record)
}

/// Free text as a record.
fn text_record(text: &str) -> Result<Record, String> {
    let mut out = b"{\"text\":".to_vec();
    write_str(&mut out, text);
    out.push(b'}');
    let out = String::from_utf8(out).map_err(|error| error.to_string())?;
    Record::parse(&out).map_err(|error| error.to_string())
}
