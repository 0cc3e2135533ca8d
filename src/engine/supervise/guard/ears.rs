//! What a guard listens to: its starter, its children, and who signals it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use super::order::{KILL, STOP};

/// The longest order, in bytes.
const MOST: usize = 16 << 20;

/// All that a guard listens to.
pub(super) struct Ears {
    pub(super) input: Lines,
    children: Signals,
    asked: Signals,
    /// Our starter is gone, or closed the pipe.
    alone: bool,
    /// Kept so that a terminal's signals do nothing.
    _ignored: Vec<Signals>,
}

impl Ears {
    pub(super) fn new() -> io::Result<Self> {
        let ignored = [SignalKind::interrupt(), SignalKind::quit(), SignalKind::hangup()];
        Ok(Self {
            input: Lines::new(io::stdin().as_fd().try_clone_to_owned()?)?,
            children: signal(SignalKind::child())?,
            asked: signal(SignalKind::terminate())?,
            alone: false,
            _ignored: ignored.into_iter().map(signal).collect::<io::Result<_>>()?,
        })
    }

    /// The next that matters. Nothing is lost when this is dropped halfway.
    pub(super) async fn next(&mut self) -> Heard {
        loop {
            let line = tokio::select! {
                line = self.input.line(), if !self.alone => line,
                _ = self.children.recv() => return Heard::Child,
                _ = self.asked.recv() => return Heard::Asked(Ending::Stop),
            };
            match line.ok().flatten().as_deref() {
                Some(KILL) => return Heard::Asked(Ending::Kill),
                Some(STOP) => return Heard::Asked(Ending::Stop),
                Some(_) => {}
                None => {
                    self.alone = true;
                    return Heard::Asked(Ending::Stop);
                }
            }
        }
    }
}

/// Lines of a pipe.
pub(super) struct Lines {
    pipe: Receiver,
    held: Vec<u8>,
}

impl Lines {
    pub(super) fn new(pipe: OwnedFd) -> io::Result<Self> {
        let pipe = Receiver::from_owned_fd(pipe)?;
        let held = Vec::new();
        Ok(Self { pipe, held })
    }

    /// Reads more; false at the end. Nothing is lost when this is dropped halfway.
    async fn fill(&mut self) -> io::Result<bool> {
        loop {
            self.pipe.readable().await?;
            match self.pipe.try_read_buf(&mut self.held) {
                Ok(0) => return Ok(false),
                Ok(_) if self.held.len() <= MOST => return Ok(true),
                Ok(_) => return Err(io::Error::other("its order is too long for the guard")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next line; none at the end.
    pub(super) async fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.held) {
                let line: Vec<u8> = self.held.drain(..=end).take(end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// All up to the end.
    pub(super) async fn rest(&mut self) -> io::Result<String> {
        while self.fill().await? {}
        Ok(String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned())
    }
}

/// How a server is ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Asked twice, then killed.
    Stop,
    /// Killed.
    Kill,
}

/// What happened next.
pub(super) enum Heard {
    /// A command, or that our starter is gone.
    Asked(Ending),
    /// A child ended.
    Child,
    /// Time to look at the log.
    Tick,
}
