//! `chainette inspect --input`: the first rows of an input against the chain.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::args::{InspectArgs, InspectFormat};
use super::{Exit, csv_types, explain_error, printer::Printer};
use crate::event::{counted, thousands};
use crate::node::preview::{Findings, NodeFindings, preview};
use crate::node::{Cpu, Walker};
use crate::plan::Plan;
use crate::source::{Input, Position, Source, SourceError, open_input};

/// How long rows are looked at.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows and bytes read at a time.
const CHUNK: (usize, usize) = (256, 1 << 20);

/// Leads the first rows of `input` up to the first Steps and shows what came of it.
pub(super) fn check_rows(args: &InspectArgs, input: &Path, plan: Plan, printer: Printer) -> Exit {
    let opened = open_input(input, Path::new(""));
    let source = match opened.and_then(|opened| Ok((first_rows(&*opened.input, args.rows)?, opened.csv))) {
        Ok((source, csv)) => {
            if let Some(message) = csv_types::misfits(&plan, csv.as_deref()) {
                printer.warning(&message);
            }
            source
        }
        Err(error) => {
            printer.error(&explain_error(&error));
            return Exit::Usage;
        }
    };
    let findings = match look(Arc::new(plan), source) {
        Some(Ok(findings)) => findings,
        Some(Err(error)) => {
            printer.error(&explain_error(&error));
            return Exit::Usage;
        }
        None => {
            printer.error("error: the check broke off; this is a fault of chainette");
            return Exit::Failed;
        }
    };
    let text = match args.format {
        InspectFormat::Json => format!("{:#}\n", serde_json::json!(findings)),
        _ => render(&findings, &input.display().to_string()),
    };
    match printer.result(&text) {
        Exit::Done if findings.rows_failed > 0 => Exit::RowErrors,
        exit => exit,
    }
}

/// The first rows of an input.
fn first_rows(input: &dyn Input, rows: u64) -> Result<Box<dyn Source>, SourceError> {
    input.open(Position::default(), Some(rows))
}

/// Runs the check on a CPU thread, whose stack is deep enough for any program; none if it panicked.
fn look(plan: Arc<Plan>, mut source: Box<dyn Source>) -> Option<Result<Findings, SourceError>> {
    let cpu = Cpu::new().ok()?;
    let walker = Walker::new(plan, Vec::new(), cpu.clone());
    let work = move || {
        let mut broken = None;
        let chunks = std::iter::from_fn(|| {
            let next = source.next_chunk(CHUNK.0, CHUNK.1);
            next.unwrap_or_else(|error| {
                broken = Some(error);
                None
            })
        });
        let findings = preview(&walker, chunks, PATIENCE);
        broken.map_or(Ok(findings), Err)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().ok()?;
    runtime.block_on(cpu.run(work))
}

fn render(findings: &Findings, input: &str) -> String {
    let total = findings.rows;
    let mut out = format!("{input}: the first {}\n", counted(total, "row"));
    if findings.out_of_time {
        out += "(there was no time for more)\n";
    }
    if !findings.fields.is_empty() {
        out += "\nfields\n";
        let width = findings.fields.keys().map(|name| name.chars().count()).max();
        let width = width.unwrap_or(0).min(40);
        for (name, field) in &findings.fields {
            let types: Vec<String> = match field.types.len() {
                1 => field.types.keys().map(|kind| (*kind).to_owned()).collect(),
                _ => {
                    let counted = field
                        .types
                        .iter()
                        .map(|(kind, n)| format!("{} {kind}", thousands(*n)));
                    counted.collect()
                }
            };
            let rows = thousands(field.rows);
            out += &format!(
                "  {name:width$}  {rows} of {}  {}\n",
                thousands(total),
                types.join(", ")
            );
        }
    }
    out += "\nnodes\n";
    let reached = |node: &&NodeFindings| node.rows > 0;
    let width = findings.nodes.keys().map(String::len).max().unwrap_or(0);
    for (id, node) in findings.nodes.iter().filter(|(_, node)| reached(node)) {
        out += &format!("  {id:width$}  {}\n", at_node(node));
    }
    let beyond: Vec<&str> = findings
        .nodes
        .iter()
        .filter(|(_, node)| !reached(node))
        .map(|(id, _)| id.as_str())
        .collect();
    if !beyond.is_empty() {
        out += &format!(
            "  not reached by these rows without asking an engine: {}\n",
            beyond.join(", ")
        );
    }
    if !findings.never_found.is_empty() {
        out += "\nread, but in none of these rows\n";
        for miss in &findings.never_found {
            let help = miss
                .help
                .as_deref()
                .map_or(String::new(), |help| format!("; {help}"));
            out += &format!("  {}: `{}`{help}\n", miss.node, miss.read);
        }
    }
    if findings.rows_failed == 0 {
        return out + "\nnone of these rows would fail so far\n";
    }
    let failed = thousands(findings.rows_failed);
    out += &format!("\n{failed} of {} would fail\n", counted(total, "row"));
    for group in &findings.failures {
        let place = group.node.as_deref().unwrap_or("input");
        out += &format!("  {place}: {} × {}\n", thousands(group.count), group.kind);
        for example in &group.examples {
            out += &format!(
                "    row {} (line {}): {}\n",
                example.row_id, example.line, example.message
            );
        }
    }
    out
}

/// A node's counts, without those that are zero.
fn at_node(node: &NodeFindings) -> String {
    let mut parts = Vec::new();
    if node.prompts > 0 {
        let (least, most) = node.prompt_characters.unwrap_or_default();
        let (least, most) = (thousands(least as u64), thousands(most as u64));
        let length = if least == most {
            least
        } else {
            format!("{least} to {most}")
        };
        parts.push(format!(
            "{} of {length} characters",
            counted(node.prompts, "prompt")
        ));
    }
    for (n, what) in [
        (node.emitted, "emitted"),
        (node.filtered, "filtered"),
        (node.skipped, "skipped"),
        (node.nulled, "nulled"),
        (node.failed, "failed"),
        (node.stopped, "for a run to tell"),
    ] {
        if n > 0 {
            parts.push(format!("{} {what}", thousands(n)));
        }
    }
    format!("{}: {}", counted(node.rows, "row"), parts.join(", "))
}
