//! The guard's own process.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use fs_err::File;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::getpgid;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::super::exit::Exit;
use super::super::files::{PidFile, replace};
use super::super::log;
use super::super::processes::{Process, as_pid, descendants, host, marked};
use super::ears::{Ears, Ending, Heard, Lines};
use super::order::{Note, Order, VERSION};
use super::{EXEC, MARK, NAME, myself};

/// How often it looks whether the log is long.
const LOOK_AT_LOG: Duration = Duration::from_secs(5);
/// How long it waits for a guard of the same server to go.
const LOCK: Duration = Duration::from_secs(5);
/// Between two looks at what survived SIGKILL, or at who holds the lock.
const AGAIN: Duration = Duration::from_millis(100);
/// How long what SIGKILL does not end is waited for: it hangs in the kernel.
const STUCK: Duration = Duration::from_secs(10);

/// The guard, from its first line to its end; gives its exit status.
pub(super) fn run() -> i32 {
    // On one thread: a server's life is tied to that of the thread which started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.and_then(|runtime| runtime.block_on(guard()));
    match ended {
        Ok(()) => 0,
        Err(error) => {
            say(&Note::Failed(error.to_string()));
            1
        }
    }
}

/// Tells our starter. It may be gone: that is seen elsewhere.
fn say(note: &Note) {
    if let Ok(mut line) = serde_json::to_string(note) {
        line.push('\n');
        let mut out = io::stdout().lock();
        let _gone = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }
}

async fn guard() -> io::Result<()> {
    let mut ears = Ears::new()?;
    let Some(line) = ears.input.line().await? else {
        return Ok(());
    };
    let order: Order = serde_json::from_str(&line)
        .ok()
        .filter(|order: &Order| order.version == VERSION)
        .ok_or_else(|| io::Error::other("the guard is of another version"))?;
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_child_subreaper(true)?;
    let lock = lock(&order).await?;
    log::put_aside(&order.files.log, order.log_most)?;
    // Before there is a server: if we and our starter die at the same moment, its processes can still be found.
    let mut pid_file = PidFile {
        server: None,
        nonce: order.nonce.clone(),
        guard: Process::me(),
        owner: order.owner,
        host: host(),
    };
    replace(&order.files.pid, &pid_file)?;
    let result = match start(&order).await {
        Err(error) => {
            say(&Note::Refused(error.to_string()));
            Ok(())
        }
        Ok(server) => {
            pid_file.server = Some(server);
            let written = replace(&order.files.pid, &pid_file);
            let guarding = Guarding {
                ears,
                order: &order,
                server,
                exit: None,
            };
            match written {
                Ok(()) => {
                    say(&Note::Started(server));
                    guarding.watch().await
                }
                Err(error) => {
                    say(&Note::Failed(error.to_string()));
                    guarding.end(Ending::Stop).await
                }
            }
        }
    };
    if result.is_ok() {
        order.files.remove();
    }
    drop(lock);
    say(&Note::Gone);
    result
}

/// The log, locked as long as this guard lives: at most one guards a server of this name.
async fn lock(order: &Order) -> io::Result<File> {
    let until = Instant::now() + LOCK;
    let file = log::open(&order.files.log)?;
    loop {
        match file.file().try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < until => {
                tokio::time::sleep(AGAIN).await
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(io::Error::other("another server of this name runs already"));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Starts the server in a group of its own.
async fn start(order: &Order) -> io::Result<Process> {
    let log = log::open(&order.files.log)?;
    let (report, silence) = io::pipe()?;
    let mut command = Command::new(myself());
    command
        .arg0(NAME)
        .arg(EXEC)
        .arg(std::process::id().to_string())
        .arg(&order.binary)
        .args(&order.arguments)
        .envs(order.env.iter().map(|(name, value)| (name, value)))
        .env(MARK, &order.nonce)
        .stdin(Stdio::null())
        .stdout(silence)
        .stderr(log.into_file())
        .process_group(0);
    let child = command.spawn()?;
    // The command holds our end of the pipe, too.
    drop(command);
    let pid = child.id();
    let mut report = Lines::new(report.into())?;
    // Its end is the server's beginning.
    let problem = report.rest().await?;
    let server = Process::of(pid);
    match server {
        _ if !problem.is_empty() => Err(io::Error::other(format!(
            "`{}`: {problem}",
            order.binary.display()
        ))),
        Some(server) => Ok(server),
        // So quick that it is over: its number is not given away before it is waited for.
        None => Ok(Process { pid, start_time: 0 }),
    }
}

/// A guard whose server was started.
struct Guarding<'a> {
    ears: Ears,
    order: &'a Order,
    server: Process,
    /// How the server ended.
    exit: Option<Exit>,
}

impl Guarding<'_> {
    /// Until somebody wants the server to end, or it does; then ends all of it.
    async fn watch(mut self) -> io::Result<()> {
        let mut ticks = interval(LOOK_AT_LOG);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.reap();
            if self.exit.is_some() {
                return self.end(Ending::Stop).await;
            }
            let heard = tokio::select! {
                heard = self.ears.next() => heard,
                _ = ticks.tick() => Heard::Tick,
            };
            match heard {
                Heard::Asked(ending) => return self.end(ending).await,
                Heard::Child => {}
                // A log that cannot be cut grows on; the server goes on, too.
                Heard::Tick => drop(log::put_aside(&self.order.files.log, self.order.log_most)),
            }
        }
    }

    /// Buries the dead; true when no process of the server is left.
    fn reap(&mut self) -> bool {
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) => return false,
                Ok(_) | Err(Errno::EINTR) => continue,
                // No children: as all orphans become ours, nothing at all is left.
                Err(_) => return true,
            };
            if as_pid(self.server.pid) == Some(pid) && self.exit.is_none() {
                // Nobody shall take it for one that serves.
                self.order.files.remove_handoff();
                say(&Note::Exited(exit.clone()));
                self.exit = Some(exit);
            }
        }
    }

    /// Ends all processes of the server: SIGTERM, SIGTERM, SIGKILL, each with its time.
    async fn end(mut self, mut ending: Ending) -> io::Result<()> {
        self.order.files.remove_handoff();
        for wait in [self.order.first_term, self.order.second_term] {
            if ending == Ending::Kill {
                break;
            }
            self.signal_all(Signal::SIGTERM);
            if self.gone_within(wait, &mut ending).await {
                return Ok(());
            }
        }
        let until = Instant::now() + STUCK;
        while Instant::now() < until {
            // Again and again: one may just have started another.
            self.signal_all(Signal::SIGKILL);
            ending = Ending::Kill;
            if self.gone_within(AGAIN, &mut ending).await {
                return Ok(());
            }
        }
        Err(io::Error::other("a process of it cannot be ended"))
    }

    /// Waits for the end of everything; false after that time, or once it is to be killed.
    async fn gone_within(&mut self, wait: Duration, ending: &mut Ending) -> bool {
        let (until, before) = (Instant::now() + wait, *ending);
        loop {
            if self.reap() {
                return true;
            }
            let heard = tokio::select! {
                heard = self.ears.next() => heard,
                () = sleep_until(until) => return false,
            };
            match heard {
                Heard::Asked(Ending::Kill) if before == Ending::Stop => {
                    *ending = Ending::Kill;
                    return false;
                }
                Heard::Asked(_) | Heard::Child | Heard::Tick => {}
            }
        }
    }

    /// Sends a signal, once, to every process of the server: its group, its descendants, and whoever carries its mark.
    fn signal_all(&self, signal: Signal) {
        // The group at once, so that none sees another die first; it is the server's as long as that is not buried.
        let group = as_pid(self.server.pid).filter(|_| self.exit.is_none());
        if let Some(group) = group {
            let _gone = killpg(group, signal);
        }
        let mut others = descendants(std::process::id());
        others.extend(marked(&self.order.nonce));
        others.sort_unstable_by_key(|process| process.pid);
        others.dedup();
        for process in others {
            // To some servers a second SIGTERM means "at once".
            let done = group.is_some() && getpgid(as_pid(process.pid)).ok() == group;
            if !done {
                process.signal(signal);
            }
        }
    }
}
