//! Who asks: arguments, settings, one file per command.

mod args;
mod check_rows;
mod clean;
mod completions;
mod csv_types;
mod diff;
mod dry_run;
mod engine;
mod engines;
mod help;
mod init;
mod inspect;
mod printer;
mod run;
mod schema;
mod screen;
mod turns;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::plan::{Closures, Plan, compile as compile_chain};
use crate::spec::{ChainInput, nearest};
use args::{ChainArgs, Cli, Command, Global};
use printer::Printer;

/// How the program ends: CHAIN.md §2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All rows done.
    Done = 0,
    /// The run failed or stopped; resumable.
    Failed = 1,
    /// Bad usage, chain or input; nothing was run.
    Usage = 2,
    /// Finished, and some rows are in `errors/`.
    RowErrors = 3,
    /// Ctrl-C or SIGTERM; resumable.
    Interrupted = 130,
}

/// The program.
pub fn main() -> ExitCode {
    crate::engine::supervise::guard_main();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(mut error) if error.use_stderr() => {
            let printer = Printer::of_raw_arguments();
            suggest_command(&mut error);
            let text = error.render();
            printer.error(&if printer.fancy {
                text.ansi().to_string()
            } else {
                text.to_string()
            });
            return ExitCode::from(Exit::Usage as u8);
        }
        // --help and --version.
        Err(asked) => {
            let exit = Printer::of_raw_arguments().help(&asked.render());
            return ExitCode::from(exit as u8);
        }
    };
    start_logs(cli.global.json_logs);
    let printer = Printer::new(&cli.global);
    let (command, global) = (&cli.command, &cli.global);
    let exit = with_room(|| perform(command, global, printer), printer);
    ExitCode::from(exit as u8)
}

/// The stack of the thread that does the work.
const STACK: usize = 64 << 20;

/// What goes down deep syntax trees has a stack like that of the threads that lead rows.
fn with_room(work: impl FnOnce() -> Exit + Send, printer: Printer) -> Exit {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chainette".into())
            .stack_size(STACK)
            .spawn_scoped(scope, work);
        match thread.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(exit)) => exit,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => {
                printer.error(&format!("error: cannot start a thread: {error}"));
                Exit::Failed
            }
        }
    })
}

/// Does what was asked for.
fn perform(command: &Command, global: &Global, printer: Printer) -> Exit {
    match command {
        Command::Run(args) => run::run(args, global, printer),
        Command::Inspect(args) => inspect::inspect(args, global, printer),
        Command::Verify(args) => verify::verify(args, printer),
        Command::Engines(args) => engines::engines(args, printer),
        Command::Engine(args) => engine::engine(args, printer),
        Command::Warmup(args) => engine::warmup(args, printer),
        Command::Kill(args) => engine::kill(args, printer),
        Command::Diff(args) => diff::diff(args, global, printer),
        Command::Clean(args) => clean::clean(args, printer),
        Command::Init(args) => init::init(args, printer),
        Command::Schema(args) => schema::schema(args, printer),
        Command::Completions(args) => completions::completions(args, printer),
    }
}

/// Names the command that was meant, where clap finds none near enough (`rnu`).
fn suggest_command(error: &mut clap::Error) {
    use clap::error::{ContextKind, ContextValue};
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else {
        return;
    };
    let known = Cli::command();
    let names = known.get_subcommands().map(clap::Command::get_name);
    if error.get(ContextKind::SuggestedSubcommand).is_none()
        && let Some(near) = nearest(typed, names)
    {
        let near = ContextValue::Strings(vec![near.to_owned()]);
        error.insert(ContextKind::SuggestedSubcommand, near);
    }
}

/// Developer logs, off unless `CHAINETTE_LOG` asks for them.
fn start_logs(json: bool) {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::fmt::writer::BoxMakeWriter;
    let filter = EnvFilter::try_from_env("CHAINETTE_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(if json {
            BoxMakeWriter::new(|| printer::LogLines)
        } else {
            BoxMakeWriter::new(std::io::stderr)
        });
    // Only a second subscriber could refuse this one.
    let _first = logs.try_init();
    // A panic is a bug of ours that is reported with its row or chunk; its trace is for developers.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panic")));
}

/// A chain that can run.
struct Chain {
    plan: Plan,
    /// BLAKE3 of the chain file, hexadecimal.
    digest: String,
}

/// Compiles the chain, showing all its problems.
fn compile(args: &ChainArgs, printer: Printer) -> Result<Chain, Exit> {
    // A file that cannot be read is one of the problems that the compiler reports.
    let text = std::fs::read_to_string(&args.chain).ok();
    let digest = blake3::hash(text.as_deref().unwrap_or_default().as_bytes())
        .to_hex()
        .to_string();
    let input = ChainInput {
        path: args.chain.clone(),
        text,
        engines: args.engines.clone(),
        sets: args.sets.clone(),
    };
    match compile_chain(&input, &Closures::none()) {
        Ok(compiled) => {
            if !compiled.warnings.is_empty() {
                printer.problems(&compiled.warnings);
            }
            Ok(Chain {
                plan: compiled.plan,
                digest,
            })
        }
        Err(report) => {
            printer.problems(&report);
            Err(Exit::Usage)
        }
    }
}

/// An error with its causes, one sentence.
fn explain_error(error: &dyn std::error::Error) -> String {
    let mut text = format!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
