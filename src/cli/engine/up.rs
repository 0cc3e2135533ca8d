//! `chainette engine up`: starts servers and keeps them for runs to come.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::args::UpArgs;
use super::super::{Exit, printer::Printer};
use super::control::{Wish, ask};
use super::keep::{End, Keeping, Told, keep};
use super::pool::Trouble;
use super::servers::Declared;
use super::{declared, planned, status, swept, warm_folder};
use crate::clock::Clock;
use crate::engine::warm::{Stage, WarmFolder};
use crate::event::{Event, EventSender};
use crate::report::{engine_line, json_line, say};
use crate::run::rfc3339;

/// Between two looks at a pool that somebody else starts.
const LOOK: Duration = Duration::from_millis(100);

/// What the process of a pool tells the command that started it, one JSON line each.
#[derive(Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "snake_case")]
enum Line {
    /// Something happened: as a person reads it, and as an event.
    Event { text: Option<String>, event: Value },
    /// Its room in memory is taken.
    Booked,
    /// All its servers are ready.
    Up,
    /// One was not; nothing is left.
    Failed { message: String, log: Vec<String> },
}

/// Starts servers and keeps them: here, or in a process of their own for each pool.
pub(super) fn up(args: &UpArgs, printer: Printer) -> Exit {
    if args.detached {
        return detached(args);
    }
    let (specs, resources) = match declared(&args.engines, printer) {
        Ok(declared) => declared,
        Err(exit) => return exit,
    };
    if let Err(exit) = planned(&specs, &resources, printer) {
        return exit;
    }
    let folder = match warm_folder(printer) {
        Ok(folder) => folder,
        Err(exit) => return exit,
    };
    swept(&folder, printer);
    let file = std::path::absolute(&args.engines.file).unwrap_or_else(|_| args.engines.file.clone());
    for spec in specs.iter().filter(|spec| spec.is_embedded()) {
        printer.notice(&format!(
            "engine {}: runs in the process of a run; there is nothing to keep",
            spec.name
        ));
    }
    for spec in specs.iter().filter(|spec| !spec.is_ours()) {
        printer.notice(&format!(
            "engine {}: is someone else's, at {}; there is nothing to start",
            spec.name,
            spec.shown_endpoint()
        ));
    }
    let mut todo = Vec::new();
    for spec in specs.iter().filter(|spec| spec.is_launched()) {
        match standing(&folder, &file, &spec.name, printer) {
            Standing::None => todo.push(spec.name.clone()),
            Standing::Same => printer.notice(&format!("engine {}: is up already", spec.name)),
            Standing::Other(why) => {
                printer.error(&format!("error: {why}"));
                return Exit::Failed;
            }
        }
    }
    let mut pools: Vec<String> = specs
        .iter()
        .filter(|spec| spec.is_launched())
        .map(|spec| spec.name.clone())
        .collect();
    if args.foreground {
        if todo.is_empty() {
            printer.error("error: there is nothing to keep up here");
            return Exit::Failed;
        }
        return foreground(args, folder, file, todo, printer);
    }
    let mut begun: Vec<Daemon> = Vec::new();
    for pool in &todo {
        match Daemon::start(args, &file, pool, &folder, printer) {
            Ok(daemon) => begun.push(daemon),
            Err(trouble) => return give_up(&folder, begun, &[trouble], printer),
        }
        // One after the other: the next one sees what this one takes.
        let Some(Err(trouble)) = begun.last_mut().map(|daemon| daemon.until(Mark::Booked)) else {
            continue;
        };
        // Somebody else may have been quicker.
        if !matches!(standing(&folder, &file, pool, printer), Standing::Same) {
            return give_up(&folder, begun, &[trouble], printer);
        }
        printer.notice(&format!("engine {pool}: is up already"));
        begun.pop();
    }
    let mut troubles = Vec::new();
    for daemon in &mut begun {
        if let Err(trouble) = daemon.until(Mark::Up) {
            troubles.push(trouble);
        }
    }
    if !troubles.is_empty() {
        return give_up(&folder, begun, &troubles, printer);
    }
    pools.sort();
    printer.result(&status::shown(&folder, Some(&pools), args.json))
}

/// Whether a pool of this name is up.
enum Standing {
    None,
    Same,
    Other(String),
}

fn standing(folder: &WarmFolder, file: &Path, pool: &str, printer: Printer) -> Standing {
    let mut told = false;
    loop {
        let Some(note) = folder.note(pool) else {
            return Standing::None;
        };
        let down = format!("`chainette engine down --pool {pool}`");
        match note.stage {
            Stage::Starting | Stage::Ending => {
                if !std::mem::replace(&mut told, true) {
                    let what = match note.stage {
                        Stage::Starting => "started",
                        _ => "stopped",
                    };
                    printer.notice(&format!(
                        "engine {pool}: is being {what} by another command; waiting"
                    ));
                }
                thread::sleep(LOOK);
            }
            Stage::Up | Stage::Reloading => {
                let same = Declared::digest_of(file, pool, folder).map(|digest| digest == note.spec_digest);
                return match same {
                    Ok(true) => Standing::Same,
                    Ok(false) => Standing::Other(format!(
                        "engine `{pool}` is up with other settings, as {} declares it\n  \
                         `chainette engine reload {} --pool {pool}` changes them, {down} stops it",
                        note.file.display(),
                        file.display(),
                    )),
                    Err(trouble) => Standing::Other(trouble.message),
                };
            }
        }
    }
}

/// Shows why it failed, and takes down what this command started.
fn give_up(folder: &WarmFolder, begun: Vec<Daemon>, troubles: &[Trouble], printer: Printer) -> Exit {
    for trouble in troubles {
        show(trouble, printer);
    }
    let failed = |pool: &str| {
        troubles
            .iter()
            .any(|trouble| trouble.message.contains(&format!("`{pool}`")))
    };
    for daemon in begun {
        if !failed(&daemon.pool) {
            printer.notice(&format!(
                "engine {}: is stopped again: `engine up` keeps all or none",
                daemon.pool
            ));
        }
        daemon.take_down(folder);
    }
    Exit::Failed
}

/// An error with the end of a server's log.
pub(super) fn show(trouble: &Trouble, printer: Printer) {
    let mut text = format!("error: {}", trouble.message);
    if !trouble.log.is_empty() {
        text += "\n  the end of its log:";
        for line in &trouble.log {
            text += &format!("\n    {line}");
        }
    }
    printer.error(&text);
}

/// The process of a pool that is being started.
struct Daemon {
    pool: String,
    child: Child,
    /// Its end tells the process that nobody waits for it any more.
    stdin: Option<ChildStdin>,
    lines: Box<dyn Iterator<Item = Line>>,
    log: PathBuf,
    printer: Printer,
}

/// How far a pool is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Booked,
    Up,
}

impl Daemon {
    fn start(
        args: &UpArgs,
        file: &Path,
        pool: &str,
        folder: &WarmFolder,
        printer: Printer,
    ) -> Result<Self, Trouble> {
        let begin = || -> std::io::Result<(Child, PathBuf)> {
            folder.make()?;
            let log = folder.file(&format!("{pool}.daemon"), "log")?;
            let mut options = std::fs::OpenOptions::new();
            let stderr = options
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(&log)?;
            let mut command = Command::new(std::env::current_exe()?);
            command
                .args(["engine", "up"])
                .arg(file)
                .args(["--pool", pool, "--foreground", "--detached"]);
            if let Some(idle) = args.idle_timeout {
                command.args(["--idle-timeout", &format!("{}ms", idle.as_millis())]);
            }
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(stderr);
            Ok((command.spawn()?, log))
        };
        let (mut child, log) = begin()
            .map_err(|error| Trouble::new(format!("cannot start a process for engine `{pool}`: {error}")))?;
        let stdin = child.stdin.take();
        let lines = child.stdout.take().map(|stdout| {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.filter_map(|line| serde_json::from_str(&line).ok())
        });
        Ok(Self {
            pool: pool.to_owned(),
            child,
            stdin,
            lines: Box::new(lines.into_iter().flatten()),
            log,
            printer,
        })
    }

    /// Passes on what it tells until it is so far.
    fn until(&mut self, mark: Mark) -> Result<(), Trouble> {
        for line in &mut self.lines {
            match line {
                Line::Event { text, event } => self.printer.report(text.as_deref(), &event),
                Line::Booked if mark == Mark::Booked => return Ok(()),
                Line::Booked => {}
                Line::Up => return Ok(()),
                Line::Failed { message, log } => return Err(Trouble { message, log }),
            }
        }
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let log: Vec<String> = log.lines().map(str::to_owned).collect();
        Err(Trouble {
            message: format!(
                "the process that keeps engine `{}` ended; its log is {}",
                self.pool,
                self.log.display()
            ),
            log: log
                .get(log.len().saturating_sub(10)..)
                .unwrap_or_default()
                .to_vec(),
        })
    }

    /// Ends it, and waits for that.
    fn take_down(mut self, folder: &WarmFolder) {
        // The pool may be another's, which was quicker.
        if folder
            .note(&self.pool)
            .is_some_and(|note| note.pid == self.child.id())
        {
            let _gone = ask(folder, &self.pool, &Wish::Down, Duration::from_secs(60));
        }
        drop(self.stdin.take());
        let _reaped = self.child.wait();
    }
}

/// Tells the command that waits.
struct Pipe {
    up: Arc<AtomicBool>,
}

impl Told for Pipe {
    fn booked(&self) {
        tell(&Line::Booked);
    }

    fn up(&self) {
        self.up.store(true, Ordering::Release);
        tell(&Line::Up);
    }
}

fn tell(line: &Line) {
    let Ok(mut text) = serde_json::to_vec(line) else {
        return;
    };
    text.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    // The command may have gone: its stdin said so, or it was told all.
    let _closed = stdout.write_all(&text).and_then(|()| stdout.flush());
}

/// The process of a pool, on its own.
fn detached(args: &UpArgs) -> Exit {
    // A session of its own: it outlives the terminal.
    let _leader = nix::unistd::setsid();
    // It keeps no folder from being removed or unmounted.
    let _stays = std::env::set_current_dir("/");
    let failed = |trouble: Trouble| {
        say(&format!("{} error: {}", rfc3339(Clock::now()), trouble.message));
        tell(&Line::Failed {
            message: trouble.message,
            log: trouble.log,
        });
        Exit::Failed
    };
    let end = match End::at_signals() {
        Ok(end) => end,
        Err(error) => return failed(Trouble::new(format!("cannot catch signals: {error}"))),
    };
    let folder = match WarmFolder::locate() {
        Ok(folder) => folder,
        Err(message) => return failed(Trouble::new(message)),
    };
    let up = Arc::<AtomicBool>::default();
    let (waits, own) = (Arc::clone(&up), end.clone());
    thread::spawn(move || {
        let mut nothing = Vec::new();
        let _read = std::io::stdin().read_to_end(&mut nothing);
        if !waits.load(Ordering::Acquire) {
            // Whoever wanted it was killed before it was there.
            own.now();
        }
    });
    let keeping = Keeping {
        folder,
        file: args.engines.file.clone(),
        pools: args.engines.pools.clone(),
        idle: args.idle_timeout,
        events: EventSender::new(|event| {
            let text = engine_line(&event);
            if let Some(text) = &text {
                say(&format!("{} {text}", rfc3339(Clock::now())));
            }
            let event = json_line(Clock::now(), &event);
            tell(&Line::Event { text, event });
        }),
    };
    match keep(keeping, &end, &Pipe { up }) {
        Ok(()) => Exit::Done,
        Err(trouble) => failed(trouble),
    }
}

/// Tells on this command's own stdout and stderr.
struct Screen {
    folder: WarmFolder,
    pools: Vec<String>,
    json: bool,
    printer: Printer,
}

impl Told for Screen {
    fn up(&self) {
        let text = status::shown(&self.folder, Some(&self.pools), self.json);
        let _told = self.printer.result(&text);
    }
}

/// Keeps all pools in this process, until Ctrl-C or SIGTERM.
fn foreground(
    args: &UpArgs,
    folder: WarmFolder,
    file: PathBuf,
    pools: Vec<String>,
    printer: Printer,
) -> Exit {
    let end = match End::at_signals() {
        Ok(end) => end,
        Err(error) => {
            printer.error(&format!("error: cannot catch signals: {error}"));
            return Exit::Failed;
        }
    };
    let screen = Screen {
        folder: folder.clone(),
        pools: pools.clone(),
        json: args.json,
        printer,
    };
    let keeping = Keeping {
        folder,
        file,
        pools,
        idle: args.idle_timeout,
        events: EventSender::new(move |event: Event| {
            printer.report(engine_line(&event).as_deref(), &json_line(Clock::now(), &event));
        }),
    };
    match keep(keeping, &end, &screen) {
        Ok(()) => Exit::Done,
        Err(trouble) => {
            show(&trouble, printer);
            Exit::Failed
        }
    }
}
