//! `chainette schema`.

use super::args::SchemaArgs;
use super::{Exit, printer::Printer};
use crate::plan::file_schema;

/// Prints the JSON Schema of a chain file or an engines file.
pub(crate) fn schema(args: &SchemaArgs, printer: Printer) -> Exit {
    let schema = if args.engines_file {
        file_schema::engines_file()
    } else {
        file_schema::chain()
    };
    printer.result(&format!("{schema:#}\n"))
}
