//! The command line. Decides nothing.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Run chains of model calls over millions of rows.
#[derive(Debug, Parser)]
#[command(
    name = "chainette",
    version,
    about,
    propagate_version = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

#[derive(Debug, Args)]
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
    /// When to use colour
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
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
    Run(RunArgs),
    /// Show a chain as a tree and check it; runs nothing
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ChainArgs {
    /// The chain file (YAML or JSON)
    pub(crate) chain: PathBuf,
    /// Set a variable of the chain; V is read as YAML
    #[arg(long = "set", value_name = "K=V")]
    pub(crate) sets: Vec<String>,
    /// A file with more engines
    #[arg(long = "engines", value_name = "FILE")]
    pub(crate) engines: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    /// Input rows: a .jsonl, .ndjson, .csv, .tsv (each also .gz or .zst), .parquet or .arrow file, a folder
    /// of them, a glob in quotes, or - for JSONL from stdin
    pub(crate) inputs: PathBuf,
    /// The folder for the outputs; a folder with an unfinished run of the same chain and input resumes it
    pub(crate) out: PathBuf,
    /// The form of the outputs
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    pub(crate) format: Format,
    /// Lines per output file
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_lines_per_file: u64,
    /// Do not write flattened/
    #[arg(long)]
    pub(crate) no_flattened: bool,
    /// Rows per chunk; changes no output [default: the chain's batch_size, else 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch_size: Option<u32>,
    /// Take only the first N rows; a later run with a larger N goes on
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Remove what OUT holds of a former run and start again
    #[arg(long, conflicts_with = "resume")]
    pub(crate) overwrite: bool,
    /// Keep what still fits of a former run whose chain or input differs
    #[arg(long)]
    pub(crate) resume: bool,
    /// Stop at the first failed row
    #[arg(long, conflicts_with = "max_errors")]
    pub(crate) fail_fast: bool,
    /// Stop when more than N rows, or P percent of them, failed
    #[arg(long, value_name = "N|P%", value_parser = max_errors)]
    pub(crate) max_errors: Option<MaxErrors>,
    /// Check everything, show the tree and the first rows' requests; send and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Keep no answers: a killed run asks again (benchmarks, throw-away runs)
    #[arg(long)]
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InspectFormat {
    Tree,
    Json,
    Dot,
    Mermaid,
}
