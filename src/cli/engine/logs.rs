//! `chainette engine logs`: what servers wrote.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use fs_err::{File, OpenOptions};
use serde_json::json;

use super::super::args::LogsArgs;
use super::super::{Exit, printer::Printer};
use super::warm_folder;
use crate::engine::supervise::files;
use crate::engine::warm::WarmFolder;
use crate::report::printable;

/// Between two looks at a log that is followed.
const LOOK: Duration = Duration::from_millis(200);
/// How far back lines are looked for, in bytes.
const BACK: u64 = 8 << 20;

/// Shows the end of the logs of a pool's servers, and with `--follow` what comes.
pub(super) fn logs(args: &LogsArgs, printer: Printer) -> Exit {
    let folder = match warm_folder(printer) {
        Ok(folder) => folder,
        Err(exit) => return exit,
    };
    let mut logs = match of(&folder, args) {
        Ok(logs) => logs,
        Err(message) => {
            printer.error(&format!("error: {message}"));
            return Exit::Failed;
        }
    };
    let several = logs.len() > 1;
    for log in &mut logs {
        let lines = log.end(args.tail);
        if print(&lines, log, several, args, printer) != Exit::Done {
            return Exit::Failed;
        }
    }
    if !args.follow {
        return Exit::Done;
    }
    loop {
        thread::sleep(LOOK);
        for log in &mut logs {
            let lines = log.more();
            if !lines.is_empty() && print(&lines, log, several, args, printer) != Exit::Done {
                return Exit::Failed;
            }
        }
    }
}

fn print(lines: &[String], log: &Log, several: bool, args: &LogsArgs, printer: Printer) -> Exit {
    let mut text = String::new();
    for line in lines {
        if args.json {
            text += &json!({"pool": args.pool, "replica": log.replica, "line": line}).to_string();
        } else if several {
            text += &format!("{}: {}", log.replica, printable(line));
        } else {
            text += &printable(line);
        }
        text.push('\n');
    }
    printer.result(&text)
}

/// The logs that were asked for.
fn of(folder: &WarmFolder, args: &LogsArgs) -> Result<Vec<Log>, String> {
    let pool = &args.pool;
    let there = |replica: &u32| folder.log(pool, *replica).is_ok_and(|path| path.exists());
    let mut replicas: Vec<u32> = (0..).take_while(there).collect();
    if let (Some(replica), false) = (args.replica, replicas.is_empty()) {
        if !there(&replica) {
            return Err(format!(
                "engine `{pool}` has no replica {replica}; there is {}",
                match replicas.len() {
                    1 => "replica 0".to_owned(),
                    n => format!("0 to {}", n - 1),
                }
            ));
        }
        replicas = vec![replica];
    }
    if replicas.is_empty() {
        folder.log(pool, 0).map_err(|error| error.to_string())?;
        return Err(format!(
            "engine `{pool}` has no log in {}\n  `chainette engine status` shows what is up",
            folder.path().display()
        ));
    }
    replicas
        .into_iter()
        .map(|replica| Log::open(folder, pool, replica))
        .collect()
}

/// The log of a server, read up to somewhere.
struct Log {
    replica: u32,
    path: PathBuf,
    file: File,
    /// Read up to here.
    at: u64,
    /// The beginning of a line whose end is still to come.
    begun: Vec<u8>,
}

impl Log {
    fn open(folder: &WarmFolder, pool: &str, replica: u32) -> Result<Self, String> {
        let path = folder.log(pool, replica).map_err(|error| error.to_string())?;
        let file =
            files::open_own(&path, OpenOptions::new().read(true)).map_err(|error| error.to_string())?;
        Ok(Self {
            replica,
            path,
            file,
            at: 0,
            begun: Vec::new(),
        })
    }

    /// Its last lines.
    fn end(&mut self, lines: usize) -> Vec<String> {
        let len = self.file.metadata().map_or(0, |meta| meta.len());
        self.at = len.saturating_sub(BACK);
        let all = self.more();
        all.get(all.len().saturating_sub(lines)..)
            .unwrap_or_default()
            .to_vec()
    }

    /// The lines that came since.
    fn more(&mut self) -> Vec<String> {
        let len = std::fs::metadata(&self.path).map_or(0, |meta| meta.len());
        if len < self.at {
            // It was put aside and begun again.
            self.at = 0;
        }
        let mut new = Vec::new();
        let read = self
            .file
            .seek(SeekFrom::Start(self.at))
            .and_then(|_| (&mut self.file).take(BACK).read_to_end(&mut new));
        if read.is_err() {
            return Vec::new();
        }
        self.at += new.len() as u64;
        self.begun.extend(new);
        let Some(end) = memchr::memrchr(b'\n', &self.begun) else {
            return Vec::new();
        };
        let whole: Vec<u8> = self.begun.drain(..=end).collect();
        String::from_utf8_lossy(&whole)
            .lines()
            .map(str::to_owned)
            .collect()
    }
}
