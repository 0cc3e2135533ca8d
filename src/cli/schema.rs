//! `chainette schema`.

use super::args::SchemaArgs;
use super::{Exit, printer::Printer};
use crate::plan::file_schema;
use crate::report::events_schema;

/// Prints the JSON Schema of a chain file, an engines file or an event.
pub(crate) fn schema(args: &SchemaArgs, printer: Printer) -> Exit {
    if args.events {
        return printer.result(events_schema());
    }
    let schema = if args.engines_file {
        file_schema::engines_file()
    } else {
        file_schema::chain()
    };
    printer.result(&format!("{schema:#}\n"))
}
