//! Our side of a guard: its pipes, what it says, and that it is waited for.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::super::exit::Exit;
use super::super::processes::{Process, descendants, marked};
use super::order::{KILL, Note, Order, STOP};
use super::{GUARD, NAME};

/// How long processes that outlived their guard and SIGKILL are waited for.
const STUCK: Duration = Duration::from_secs(5);
/// Between two looks at them.
const AGAIN: Duration = Duration::from_millis(20);
/// What a guard may take beyond the times of its order to end a server.
const SLACK: Duration = Duration::from_secs(15);

/// What is known of a guarded server.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Life {
    /// The server, once it runs.
    pub(in super::super) server: Option<Process>,
    /// Why its program could not be started.
    pub(in super::super) refused: Option<String>,
    /// What its guard could not do.
    pub(in super::super) failed: Option<String>,
    /// How it ended.
    pub(in super::super) exit: Option<Exit>,
    /// Nothing of it is left, and the guard is waited for.
    pub(in super::super) gone: bool,
}

/// A server under its guard. Dropping it ends the server, soon; the guard is waited for in any case.
pub(in super::super) struct Guarded {
    guard: Process,
    life: watch::Receiver<Life>,
    /// The guard ends the server when this is closed.
    input: Mutex<ChildStdin>,
    /// How long the guard may take to end it.
    patience: Duration,
}

impl Guarded {
    /// Starts a guard, and it the server. An error says why the guard cannot be started; what becomes of the server
    /// is told by [`Guarded::life`].
    pub(in super::super) fn start(program: &Path, order: Order) -> io::Result<Self> {
        let mut line = serde_json::to_string(&order)?;
        line.push('\n');
        let patience = order.first_term + order.second_term + SLACK;
        let (said, life) = watch::channel(Life::default());
        let (begun, begins) = mpsc::channel();
        let program = program.to_owned();
        // A thread, so that the guard is waited for even when there is no runtime any more; the guard is its child, so
        // that there is none if there can be no thread.
        let thread = std::thread::Builder::new().name("chainette-guard".to_owned());
        thread.spawn(move || match spawn(&program) {
            Ok((guard, input)) => {
                let process = Process::of(guard.id()).unwrap_or(Process {
                    pid: guard.id(),
                    start_time: 0,
                });
                // Nobody hears it if the start was given up; then the pipe is closed, and the guard ends.
                let _unheard = begun.send(Ok((process, input)));
                attend(guard, &order, &said);
            }
            Err(error) => drop(begun.send(Err(error))),
        })?;
        let (guard, mut input) = begins.recv().map_err(io::Error::other)??;
        // One that is dead already is heard of by its silence.
        let _dead = input.write_all(line.as_bytes());
        Ok(Self {
            guard,
            life,
            input: Mutex::new(input),
            patience,
        })
    }

    /// What is known of it, now and later.
    pub(in super::super) fn life(&self) -> watch::Receiver<Life> {
        self.life.clone()
    }

    /// The guard and every process below it.
    pub(in super::super) fn tree(&self) -> Vec<Process> {
        descendants(self.guard.pid)
    }

    /// Has the server ended as a well-behaved one likes it, and waits until nothing of it is left.
    pub(in super::super) async fn stop(&self) -> Exit {
        self.end(STOP).await
    }

    /// Has the server killed, and waits until nothing of it is left.
    pub(in super::super) async fn kill(&self) -> Exit {
        self.end(KILL).await
    }

    async fn end(&self, command: &str) -> Exit {
        {
            let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
            let _dead = writeln!(input, "{command}");
        }
        let mut life = self.life();
        let gone = tokio::time::timeout(self.patience, life.wait_for(|life| life.gone));
        if gone.await.is_err() {
            // A guard that does not do its work; what it leaves is ended by the thread that waits for it.
            self.guard.signal(Signal::SIGKILL);
            let _gone = life.wait_for(|life| life.gone).await;
        }
        let exit = life.borrow().exit.clone();
        exit.unwrap_or_else(|| Exit::Guard("ended".to_owned()))
    }
}

/// Starts a guard's process, and gives the pipe that it listens to.
fn spawn(program: &Path) -> io::Result<(Child, ChildStdin)> {
    let mut guard = Command::new(program)
        .arg0(NAME)
        .arg(GUARD)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    match guard.stdin.take() {
        Some(input) => Ok((guard, input)),
        None => Err(io::Error::other("it has no stdin")),
    }
}

/// Listens to a guard until its end, waits for it, and does what it could not do.
fn attend(mut guard: Child, order: &Order, said: &watch::Sender<Life>) {
    let output = guard.stdout.take().map(BufReader::new);
    let mut gone = false;
    for line in output
        .into_iter()
        .flat_map(|output| output.lines().map_while(Result::ok))
    {
        match serde_json::from_str(&line) {
            Ok(Note::Gone) => gone = true,
            Ok(note) => said.send_modify(|life| life.hear(note)),
            Err(_) => said.send_modify(|life| life.failed = Some("the guard talks nonsense".to_owned())),
        }
    }
    let status = guard.wait();
    if !gone {
        bury(order);
    }
    // It may have been written just after the guard removed it.
    if let Some(server) = said.borrow().server {
        order.files.remove_handoff_of(server);
    }
    said.send_modify(|life| {
        let how = status.map_or_else(|_| "is gone".to_owned(), |status| Exit::from(status).to_string());
        life.exit.get_or_insert(Exit::Guard(how));
        life.gone = true;
    });
}

impl Life {
    fn hear(&mut self, note: Note) {
        match note {
            Note::Started(server) => self.server = Some(server),
            Note::Refused(why) => self.refused = Some(why),
            Note::Failed(why) => self.failed = Some(why),
            Note::Exited(exit) => self.exit = Some(exit),
            Note::Gone => {}
        }
    }
}

/// Ends what outlived its guard, and removes its files.
fn bury(order: &Order) {
    order.files.remove_handoff();
    let _ended = end_marked(&order.nonce);
    order.files.remove();
}

/// Kills every process with this mark; gives how many there were.
pub(in super::super) fn end_marked(nonce: &str) -> usize {
    let until = Instant::now() + STUCK;
    let mut found = std::collections::HashSet::new();
    loop {
        let left = marked(nonce);
        found.extend(left.iter().copied());
        if left.is_empty() || Instant::now() > until {
            return found.len();
        }
        left.iter().for_each(|process| process.signal(Signal::SIGKILL));
        std::thread::sleep(AGAIN);
    }
}
