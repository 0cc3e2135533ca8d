//! The `chainette` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    chainette::cli::main()
}
