//! `chainette clean`.

use indicatif::DecimalBytes;

use super::args::CleanArgs;
use super::printer::Printer;
use super::{Exit, explain_error};
use crate::event::counted;
use crate::run::{Cleaned, clean as clean_out};

/// Gives back the answers of a finished run.
pub(crate) fn clean(args: &CleanArgs, printer: Printer) -> Exit {
    match clean_out(&args.out) {
        Err(error) => {
            printer.error(&explain_error(&error));
            if error.is_usage() {
                Exit::Usage
            } else {
                Exit::Failed
            }
        }
        Ok(Cleaned { files: 0, .. }) => {
            printer.notice("nothing to give back: no answers are kept there");
            Exit::Done
        }
        Ok(Cleaned { files, bytes }) => {
            let out: std::path::PathBuf = args.out.components().collect();
            printer.notice(&format!(
                "{}: {} of answers in {} given back; its outputs are as they were",
                out.display(),
                DecimalBytes(bytes),
                counted(files, "file"),
            ));
            Exit::Done
        }
    }
}
