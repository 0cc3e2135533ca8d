//! `chainette completions`.

use clap::CommandFactory;

use super::args::{Cli, CompletionsArgs};
use super::{Exit, printer::Printer};

/// Prints the script that teaches a shell our commands and flags.
pub(crate) fn completions(args: &CompletionsArgs, printer: Printer) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "chainette", &mut script);
    printer.result(&String::from_utf8_lossy(&script))
}
