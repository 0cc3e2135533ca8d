//! `chainette init`.

use std::io::Write;
use std::path::Path;

use super::args::InitArgs;
use super::{Exit, printer::Printer};
use crate::plan::file_schema;

const CHAIN: &str = include_str!("starter/chain.yaml");
const INPUTS: &str = include_str!("starter/inputs.jsonl");

/// Writes a chain that runs at once, with an input; overwrites nothing.
pub(crate) fn init(args: &InitArgs, printer: Printer) -> Exit {
    let dir = if args.dir == Path::new(".") {
        Path::new("")
    } else {
        args.dir.as_path()
    };
    let files = [
        ("chain.yaml", CHAIN.to_owned()),
        ("inputs.jsonl", INPUTS.to_owned()),
        ("chain.schema.json", format!("{:#}\n", file_schema::chain())),
    ];
    // A dangling link is there as well: what it points to would be written elsewhere.
    let there = |name: &str| dir.join(name).symlink_metadata().is_ok();
    let taken: Vec<String> = files
        .iter()
        .filter(|(name, _)| there(name))
        .map(|(name, _)| dir.join(name).display().to_string())
        .collect();
    if !taken.is_empty() {
        printer.error(&format!(
            "error: there already: {}; nothing was written\n  give another folder: chainette init DIR",
            taken.join(", ")
        ));
        return Exit::Usage;
    }
    if let Err(error) = std::fs::create_dir_all(&args.dir) {
        printer.error(&format!("error: cannot create {}: {error}", args.dir.display()));
        return Exit::Usage;
    }
    let mut said = String::new();
    for (name, content) in &files {
        if let Err(exit) = write(&dir.join(name), content, &mut said, printer) {
            return exit;
        }
    }
    if there(".gitignore") {
        said += "kept  .gitignore as it is; outputs are better not committed: add out/ to it\n";
    } else if let Err(exit) = write(&dir.join(".gitignore"), "out/\n", &mut said, printer) {
        return exit;
    }
    let [chain, inputs, out] = ["chain.yaml", "inputs.jsonl", "out"].map(|name| quoted(&dir.join(name)));
    said += &format!("\nnext: chainette run {chain} {inputs} {out}\n");
    printer.result(&said)
}

/// Writes a new file and notes that.
fn write(path: &Path, content: &str, said: &mut String, printer: Printer) -> Result<(), Exit> {
    let written = std::fs::File::create_new(path).and_then(|mut file| file.write_all(content.as_bytes()));
    if let Err(error) = written {
        printer.error(&format!("error: cannot write {}: {error}", path.display()));
        return Err(Exit::Failed);
    }
    *said += &format!("wrote {}\n", path.display());
    Ok(())
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let mut text = path.display().to_string();
    if text.starts_with('-') {
        text.insert_str(0, "./");
    }
    let plain = |c: char| c.is_alphanumeric() || "_-./+=@%:,".contains(c);
    if text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
