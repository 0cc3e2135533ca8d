//! `chainette run --dry-run`: the first requests, and nothing sent.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::Value;

use super::args::{Global, RunArgs};
use super::inspect::tree_options;
use super::{Exit, explain_error, printer::Printer};
use crate::engine::broker::Broker;
use crate::engine::client::{adapter, address, embeddings_address};
use crate::event::{EventSender, counted};
use crate::node::ahead::{Ahead, CHILDREN, Preview};
use crate::node::answer::{Answers, NoAnswers};
use crate::node::step::Step;
use crate::node::{Cpu, Walker};
use crate::plan::{EngineIx, NodeKind, Plan, explain};
use crate::source::{Input, Position};
use crate::spec::{EngineSpec, Task};

/// Rows that are shown.
const ROWS: u64 = 3;

/// Shows the tree and what the first rows would ask. Sends nothing, writes nothing, needs no API key.
pub(super) fn dry_run(
    args: &RunArgs,
    global: &Global,
    (plan, sets): (Arc<Plan>, &[Vec<EngineIx>]),
    input: &dyn Input,
    printer: Printer,
) -> Exit {
    // The keys are not needed to render requests, and must not be shown.
    let specs = plan.engines.iter().map(|spec| EngineSpec {
        api_key_env: None,
        ..spec.clone()
    });
    let specs: Vec<EngineSpec> = specs.collect();
    let mut broker = Broker::empty(EventSender::none());
    for spec in &specs {
        broker = match adapter(spec) {
            Ok(engine) => broker.with_engine(&spec.name, engine, spec.concurrency, spec.engine_wait),
            Err(error) => return usage(printer, &explain_error(&error)),
        };
    }
    let broker = Arc::new(broker);
    let answers: Arc<dyn Answers> = Arc::new(NoAnswers);
    let steps = plan.nodes.iter().map(|node| match &node.kind {
        NodeKind::Step(step) => Step::new(node, step, broker.clone(), answers.clone()),
        NodeKind::Apply(_) => None,
    });
    let cpu = match Cpu::new() {
        Ok(cpu) => cpu,
        Err(error) => {
            printer.error(&explain_error(&error));
            return Exit::Failed;
        }
    };
    let walker = Walker::new(plan.clone(), steps.collect(), cpu);
    let limit = args.limit.map_or(ROWS, |limit| limit.min(ROWS));
    let mut source = match input.open(Position::default(), Some(limit)) {
        Ok(source) => source,
        Err(error) => return usage(printer, &explain_error(&error)),
    };
    let mut text = explain::tree_in_turns(&plan, tree_options(global), sets);
    let mut rows = 0;
    loop {
        match source.next_chunk(1, usize::MAX) {
            Err(error) => return usage(printer, &explain_error(&error)),
            Ok(None) => break,
            Ok(Some(chunk)) => {
                for row in &chunk.rows {
                    rows += 1;
                    for preview in walker.preview(row, &chunk.data) {
                        show(&mut text, &plan, &preview);
                    }
                }
            }
        }
    }
    if rows == 0 {
        text += "\nthere are no rows: nothing would be asked\n";
    }
    printer.result(&text);
    Exit::Done
}

fn usage(printer: Printer, message: &str) -> Exit {
    printer.error(message);
    Exit::Usage
}

/// Adds one line, and the request where there is one.
fn show(text: &mut String, plan: &Plan, preview: &Preview) {
    let Preview { row_id, node, what } = preview;
    let says = match what {
        Ahead::Waits(steps) => format!("waits for the answer of {}", steps.join(" and ")),
        Ahead::Fails(error) => format!("fails with {}: {}", error.kind, error.message),
        Ahead::Filtered => "is filtered: the row ends here".to_owned(),
        Ahead::Skipped => "is skipped: its `when` is false".to_owned(),
        Ahead::Children(count) if *count > CHILDREN => {
            format!(
                "leaves {}; the first {CHILDREN} are shown",
                counted(*count as u64, "row")
            )
        }
        Ahead::Children(count) => format!("leaves {}", counted(*count as u64, "row")),
        Ahead::Request { engine, task, body } => match plan.engines.get(engine.0) {
            Some(spec) => format!("asks {}\n{}", spec.name, request(spec, *task, body)),
            None => String::new(),
        },
    };
    // A string takes whatever is written to it.
    let _infallible = write!(text, "\nrow {row_id}: {node} {says}");
    if !text.ends_with('\n') {
        text.push('\n');
    }
}

/// A request as HTTP would carry it, but pretty, and with every secret taken out.
fn request(spec: &EngineSpec, task: Task, body: &[u8]) -> String {
    if spec.is_embedded() {
        let pretty = serde_json::from_slice::<Value>(body).map(|body| format!("{body:#}"));
        return format!("{}\n", pretty.unwrap_or_default());
    }
    let page = match task {
        Task::Generate => address(&located(spec)),
        Task::Embed => embeddings_address(&located(spec)),
    };
    let mut out = format!("POST {}\n", shown(&page));
    out += "content-type: application/json\n";
    for (name, _) in &spec.headers {
        out += &format!("{}: ***\n", name.to_ascii_lowercase());
    }
    if let Some(env) = &spec.api_key_env {
        out += &format!("authorization: Bearer ${env}\n");
    }
    out += "x-chainette-attempt: 0\n\n";
    let pretty = serde_json::from_slice::<Value>(body).map(|body| format!("{body:#}"));
    out += &pretty.unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned());
    out.push('\n');
    out
}

/// An engine with the address that it will have: of one that is started by us the port may be open.
fn located(spec: &EngineSpec) -> EngineSpec {
    if !spec.is_launched() {
        return spec.clone();
    }
    let port = spec
        .launch
        .port
        .map_or("PORT".to_owned(), |port| port.to_string());
    spec.at(format!("http://{}:{port}", spec.launch.host))
}

/// An address; what it may carry besides host and path may be a secret.
fn shown(address: &str) -> String {
    let (plain, query) = match address.split_once('?') {
        Some((plain, _)) => (plain, "?***"),
        None => (address, ""),
    };
    match plain.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}/{path}{query}")
        }
        None => format!("{plain}{query}"),
    }
}
