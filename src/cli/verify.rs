//! `chainette verify`.

use super::args::VerifyArgs;
use super::{Exit, explain_error, printer::Printer};
use crate::audit::{AuditError, Verdict, verify as prove};
use crate::event::counted;
use crate::report::thousands;
use crate::run::NodeCounts;

/// Proves that a run is complete and unaltered, or says what is wrong.
pub(crate) fn verify(args: &VerifyArgs, printer: Printer) -> Exit {
    let verdict = match prove(&args.out) {
        Ok(verdict) => verdict,
        Err(error) => {
            printer.error(&explain_error(&error));
            return match error {
                AuditError::Missing { .. } | AuditError::Foreign { .. } => Exit::Usage,
                _ => Exit::Failed,
            };
        }
    };
    let text = match (args.json, verdict.proven) {
        (true, _) => match serde_json::to_string_pretty(&verdict) {
            Ok(text) => text + "\n",
            Err(error) => {
                printer.error(&format!("error: {error}"));
                return Exit::Failed;
            }
        },
        (false, true) => proof(&verdict),
        (false, false) => problems(&verdict),
    };
    match printer.result(&text) {
        Exit::Done if !verdict.proven => Exit::Failed,
        exit => exit,
    }
}

/// What was proven, a line for the whole and one for each node at which something was lost.
fn proof(verdict: &Verdict) -> String {
    let Verdict { rows, nodes, .. } = verdict;
    let mut places = counted(nodes.len() as u64, "node");
    match verdict.branches.len() {
        0 => {}
        1 => places += " and 1 branch",
        n => places += &format!(" and {n} branches"),
    }
    let mut text = format!(
        "{}: {}, each accounted for once at {places}; {} as written; ",
        name(verdict),
        counted(*rows, "row"),
        counted(verdict.shards, "shard"),
    );
    text += &match (&verdict.sink, verdict.lines) {
        (Some(_), 0) => String::new(),
        (_, 1) => "1 line matches its schema\n".to_owned(),
        (_, lines) => format!("{} lines match their schemas\n", thousands(lines)),
    };
    if let Some(sink) = &verdict.sink {
        if verdict.lines == 0 {
            text.truncate(text.len() - 2);
            text.push('\n');
        }
        text += &format!(
            "  the files of the sink `{sink}` were checked by digests and counts; only their author can read rows in them\n"
        );
    }
    if !verdict.errors.is_empty() {
        let kinds = verdict.errors.iter();
        let kinds: Vec<String> = kinds
            .map(|(kind, n)| format!("{} {kind}", thousands(*n)))
            .collect();
        text += &format!("  in errors/: {}\n", kinds.join(", "));
    }
    for (id, counts) in nodes {
        let NodeCounts {
            filtered,
            skipped,
            nulled,
            failed,
            ..
        } = *counts;
        let fates = [
            (filtered, "filtered"),
            (skipped, "skipped"),
            (nulled, "nulled"),
            (failed, "failed"),
        ];
        let fates: Vec<String> = fates
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, word)| format!("{} {word}", thousands(*n)))
            .collect();
        if !fates.is_empty() {
            text += &format!("  {id}: {} of {}\n", fates.join(", "), thousands(counts.rows));
        }
    }
    text
}

/// Every problem, and what to do.
fn problems(verdict: &Verdict) -> String {
    let all: u64 = verdict.problem_counts.values().sum();
    let mut text = format!("{}: {}\n", name(verdict), counted(all, "problem"));
    let mut shown = verdict.problems.iter().peekable();
    for (kind, count) in &verdict.problem_counts {
        let mut left = *count;
        while let Some(problem) = shown.next_if(|problem| problem.kind == *kind) {
            text += &format!("  {problem}\n");
            left -= 1;
        }
        if left > 0 {
            text += &format!("  and {} more like the last\n", thousands(left));
        }
    }
    text += "\n";
    text += match verdict.run_id.as_str() {
        // It could not be read; the problem says what to do.
        "" => "nothing else was looked at\n",
        _ => {
            "restore the files from a copy; or remove what is said to be wrong and run the same command with\n\
             --resume, which writes all outputs again from the answers on file; or start again with --overwrite\n"
        }
    };
    text
}

/// OUT without a slash at its end.
fn name(verdict: &Verdict) -> String {
    let out: std::path::PathBuf = verdict.out.components().collect();
    out.display().to_string()
}
