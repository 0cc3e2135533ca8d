//! The command line. Decides nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::help;
use crate::spec::parse_duration;

/// Run chains of model calls over millions of rows.
#[derive(Debug, Parser)]
#[command(
    name = "chainette",
    version,
    about,
    propagate_version = true,
    max_term_width = 100,
    after_help = help::TOP,
    after_long_help = help::TOP_LONG
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Screen")]
pub(crate) struct Global {
    /// Show only errors
    #[arg(long, global = true)]
    pub(crate) quiet: bool,
    /// Write one JSON object per line to stderr, and nothing else there
    #[arg(long, global = true)]
    pub(crate) json_logs: bool,
    /// Show requests and retries as they happen, at a bounded rate
    #[arg(long, global = true, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
    /// Colours: auto (on a terminal without NO_COLOR), always or never
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, hide_possible_values = true, value_name = "WHEN")]
    pub(crate) color: Color,
    /// Leave emoji out of the tree
    #[arg(long, global = true)]
    pub(crate) no_icons: bool,
    /// Show at most N branches of a group in the tree
    #[arg(long, global = true, value_name = "N")]
    pub(crate) max_branches: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a chain over an input file
    ///
    /// Writes one folder per node, a flattened table and a list of every row that failed. The same command
    /// again resumes an unfinished run without asking an engine twice, and says so when it is finished.
    #[command(after_help = help::RUN, after_long_help = help::RUN_LONG)]
    Run(RunArgs),
    /// Show a chain as a tree and check it, with --input also its rows; runs nothing
    ///
    /// Everything that is wrong with the chain is told at once. Needs no network and writes nothing.
    #[command(after_help = help::INSPECT, after_long_help = help::INSPECT_LONG)]
    Inspect(InspectArgs),
    /// Prove that a run is complete and unaltered
    ///
    /// From OUT alone: every input row has exactly one outcome at every node and branch it came to, every
    /// line that should be there is, once and in its place, and matches its schema; digests and counts are
    /// those that were sealed. Needs no chain, no input and no network; writes nothing.
    #[command(after_help = help::VERIFY, after_long_help = help::VERIFY_LONG)]
    Verify(VerifyArgs),
    /// List the engines of a chain and ask each for its state
    ///
    /// Asks all of them at once, each in the way its backend answers; nothing is generated. Keys are
    /// never shown, only whether they are set.
    #[command(after_long_help = help::ENGINES)]
    Engines(EnginesArgs),
    /// Look after the servers that chainette starts itself
    #[command(after_long_help = help::ENGINE)]
    Engine(EngineArgs),
    /// The same as `engine up`
    #[command(after_long_help = help::ENGINE_UP)]
    Warmup(UpArgs),
    /// The same as `engine down`
    #[command(after_long_help = help::ENGINE_DOWN)]
    Kill(DownArgs),
    /// Compare two finished runs: rows, fields, failures and tokens
    ///
    /// For those who changed a prompt or a model and want to see what that changed. Rows are compared by
    /// their row ids, values as JSON; one run may be JSONL and the other Parquet.
    #[command(after_help = help::DIFF, after_long_help = help::DIFF_LONG)]
    Diff(DiffArgs),
    /// Give back the disk space of a finished run's answers
    ///
    /// Outputs stay as they are. Without answers a changed chain asks everything again, and failed rows
    /// cannot be asked again alone.
    #[command(after_long_help = help::CLEAN)]
    Clean(CleanArgs),
    /// Write a starter chain that runs at once
    #[command(after_long_help = help::INIT)]
    Init(InitArgs),
    /// Print the JSON Schema of the chain file, for editors
    #[command(after_help = help::SCHEMA)]
    Schema(SchemaArgs),
    /// Print the completion script of a shell
    #[command(after_help = help::COMPLETIONS)]
    Completions(CompletionsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ChainArgs {
    /// The chain file (YAML or JSON)
    pub(crate) chain: PathBuf,
    /// Set a variable of the chain; may be repeated
    ///
    /// K must stand in the chain's `vars`; V is read as YAML: `--set tone=harsh`, `--set 'tags=[a, b]'`.
    #[arg(long = "set", value_name = "K=V", help_heading = "Chain")]
    pub(crate) sets: Vec<String>,
    /// A file with more engines; may be repeated
    ///
    /// A YAML file with an `engines:` mapping as in a chain. A name may be declared only once.
    #[arg(long = "engines", value_name = "FILE", help_heading = "Chain")]
    pub(crate) engines: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    /// Input rows: a .jsonl, .ndjson, .csv, .tsv (each also .gz or .zst), .parquet or .arrow file, a folder
    /// of them, a glob in quotes, or - for JSONL from stdin
    pub(crate) inputs: PathBuf,
    /// The folder for the outputs; an unfinished run in it is resumed
    pub(crate) out: PathBuf,
    /// The form of the outputs
    #[arg(long, value_enum, default_value_t = Format::Jsonl, help_heading = "Output")]
    pub(crate) format: Format,
    /// Lines per output file
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Output")]
    pub(crate) max_lines_per_file: u64,
    /// Do not write flattened/
    #[arg(long, help_heading = "Output")]
    pub(crate) no_flattened: bool,
    /// Rows per chunk; changes no output [default: the chain's batch_size, else 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Rows")]
    pub(crate) batch_size: Option<u32>,
    /// Take only the first N rows; a later run with a larger N goes on, with a smaller one needs --resume
    #[arg(long, value_name = "N", help_heading = "Rows")]
    pub(crate) limit: Option<u64>,
    /// Remove what OUT holds of a former run and start again
    #[arg(long, conflicts_with = "resume", help_heading = "Resuming")]
    pub(crate) overwrite: bool,
    /// Keep what still fits of a former run whose chain or input differs
    ///
    /// Questions that did not change are not asked again.
    #[arg(long, help_heading = "Resuming")]
    pub(crate) resume: bool,
    /// Ask the failed rows of a former run again
    ///
    /// The outputs without these failures replace those that stand, as a whole and at the end. All other answers
    /// come from the former run.
    #[arg(long, conflicts_with_all = ["overwrite", "no_ledger"], help_heading = "Resuming")]
    pub(crate) retry_errors: bool,
    /// Stop at the first failed row
    #[arg(long, conflicts_with = "max_errors", help_heading = "Errors")]
    pub(crate) fail_fast: bool,
    /// Stop when more than N rows, or P percent of them, failed
    #[arg(long, value_name = "N|P%", value_parser = max_errors, help_heading = "Errors")]
    pub(crate) max_errors: Option<MaxErrors>,
    /// Check everything, show the tree and the first rows' requests; send and write nothing
    #[arg(long, help_heading = "Rows")]
    pub(crate) dry_run: bool,
    /// Keep no answers: a killed run asks again (benchmarks, throw-away runs)
    #[arg(long, help_heading = "Resuming")]
    pub(crate) no_ledger: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Jsonl,
    Parquet,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum MaxErrors {
    Rows(u64),
    Percent(f64),
}

fn max_errors(text: &str) -> Result<MaxErrors, String> {
    let wrong = || format!("`{text}` is neither a number of rows (`20`) nor a percentage (`5%`)");
    match text.strip_suffix('%') {
        None => text.parse().map(MaxErrors::Rows).map_err(|_| wrong()),
        Some(number) => match number.trim().parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(MaxErrors::Percent(percent)),
            _ => Err(wrong()),
        },
    }
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    /// The form of the output
    #[arg(long, value_enum, default_value_t = InspectFormat::Tree)]
    pub(crate) format: InspectFormat,
    /// Check the first rows of this input too: whatever `run` takes
    ///
    /// They are led up to the prompts of the first Steps: `input_model`, jq, `when` and templates are
    /// tried on them, so that a wrong prompt or a missing field is found before anything is asked.
    #[arg(long, value_name = "FILE", help_heading = "Rows")]
    pub(crate) input: Option<PathBuf>,
    /// How many rows of --input
    #[arg(long, value_name = "N", requires = "input", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Rows")]
    pub(crate) rows: u64,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The folder of a finished run
    pub(crate) out: PathBuf,
    /// Print JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EnginesArgs {
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    /// Print JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
    /// How long an engine may take to answer
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = time)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    #[command(subcommand)]
    pub(crate) command: EngineCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EngineCommand {
    /// Fetch and verify what engines need, and show how they would be started; starts nothing
    ///
    /// Everything that is missing is told at once, with what to do about it.
    #[command(after_long_help = help::ENGINE_PROVISION)]
    Provision(ProvisionArgs),
    /// Start servers, and keep them for runs to come
    ///
    /// Returns when all are ready, or one failed: then none is left. A process for each engine keeps its servers:
    /// one that ends is started again. Runs whose engine is declared in the same way use them.
    #[command(after_long_help = help::ENGINE_UP)]
    Up(UpArgs),
    /// Show the servers that are up
    #[command(after_long_help = help::ENGINE_STATUS)]
    Status(StatusArgs),
    /// Stop servers once no run has a request in flight there
    ///
    /// They take no new requests from now on. When requests are still in flight at the deadline, nothing is stopped
    /// and the servers take requests again.
    #[command(after_long_help = help::ENGINE_DRAIN)]
    Drain(DrainArgs),
    /// Put other servers in the place of those that are up
    ///
    /// Prepares what the file declares now, drains the servers, and starts the new ones. When these do not become
    /// ready, the old ones are started again.
    #[command(after_long_help = help::ENGINE_RELOAD)]
    Reload(ReloadArgs),
    /// Stop servers now
    ///
    /// Nothing of them is left but logs. Runs that use them start their own, and ask again what was in flight.
    #[command(after_long_help = help::ENGINE_DOWN)]
    Down(DownArgs),
    /// Show what servers wrote
    Logs(LogsArgs),
}

/// The engines of a file.
#[derive(Clone, Debug, Args)]
pub(crate) struct PoolsArgs {
    /// A chain file, or an engines file
    pub(crate) file: PathBuf,
    /// Only the engine or pool of this name; may be repeated
    #[arg(long = "pool", value_name = "ID")]
    pub(crate) pools: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ProvisionArgs {
    #[command(flatten)]
    pub(crate) engines: PoolsArgs,
    /// Only look: fetch nothing, verify nothing, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) engines: PoolsArgs,
    /// Keep them in this process, until Ctrl-C or SIGTERM: for systemd and containers
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Stop servers that no run has used for so long [default: never]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Print JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
    /// This is the process that keeps a pool, and a command waits for it
    #[arg(long, hide = true, requires = "foreground")]
    pub(crate) detached: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Only the engines of this chain or engines file, also those that are not up
    pub(crate) file: Option<PathBuf>,
    /// Only the engine of this name; may be repeated
    #[arg(long = "pool", value_name = "ID")]
    pub(crate) pools: Vec<String>,
    /// Print JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

impl StatusArgs {
    /// The engines of its file.
    pub(crate) fn pools_args(&self) -> PoolsArgs {
        PoolsArgs {
            file: self.file.clone().unwrap_or_default(),
            pools: self.pools.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The engine; may be repeated
    #[arg(long = "pool", value_name = "ID", required = true)]
    pub(crate) pools: Vec<String>,
    /// How long to wait for requests in flight
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub(crate) deadline: Duration,
    /// Print JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReloadArgs {
    /// The chain or engines file that declares it [default: as it was when it was started]
    pub(crate) file: Option<PathBuf>,
    /// The engine
    #[arg(long, value_name = "ID")]
    pub(crate) pool: String,
    /// How long to wait for requests in flight
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub(crate) deadline: Duration,
    /// Print JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

impl ReloadArgs {
    /// The engine of its file.
    pub(crate) fn pools_args(&self, file: &std::path::Path) -> PoolsArgs {
        PoolsArgs {
            file: file.to_owned(),
            pools: vec![self.pool.clone()],
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// The engine; may be repeated
    #[arg(long = "pool", value_name = "ID", required_unless_present = "all")]
    pub(crate) pools: Vec<String>,
    /// All engines that are up
    #[arg(long, conflicts_with = "pools")]
    pub(crate) all: bool,
    /// Print JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The engine
    #[arg(long, value_name = "ID")]
    pub(crate) pool: String,
    /// Only this server of it, from 0
    #[arg(long, value_name = "N")]
    pub(crate) replica: Option<u32>,
    /// How many of the last lines
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub(crate) tail: usize,
    /// Go on showing what comes, until Ctrl-C
    #[arg(long)]
    pub(crate) follow: bool,
    /// Print a JSON object per line, for programs
    #[arg(long)]
    pub(crate) json: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time span; write a number with a unit: `500ms`, `10s`, `5min`");
    parse_duration(text).ok_or_else(wrong)
}

#[derive(Debug, Args)]
pub(crate) struct CleanArgs {
    /// The folder of a finished run
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The folder OUT of a finished run
    pub(crate) out_a: PathBuf,
    /// The folder OUT of another one
    pub(crate) out_b: PathBuf,
    /// Print JSON, for programs
    #[arg(long)]
    pub(crate) json: bool,
    /// Show the first N rows that differ, by folder
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) sample: usize,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The folder; made if it is not there
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    /// The schema of an engines file (--engines FILE) instead
    #[arg(long)]
    pub(crate) engines_file: bool,
    /// The schema of a line of `run --json-logs` instead
    #[arg(long, conflicts_with = "engines_file")]
    pub(crate) events: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InspectFormat {
    Tree,
    Json,
    Dot,
    Mermaid,
}
