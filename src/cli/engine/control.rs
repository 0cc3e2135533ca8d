//! How commands talk to the process of a pool: one JSON line there, one back, over a socket that only its user can open.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream as Connection};

use crate::engine::warm::WarmFolder;

/// No line is longer.
const MOST: usize = 1 << 20;
/// How long a command may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest path that a socket can have, with room for systems that take less than Linux.
const LONGEST: usize = 100;

/// What a command wants of a pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Wish {
    /// To know how its servers are.
    Status,
    /// That it stops them now, and ends.
    Down,
    /// That it stops them when nobody uses them, and ends.
    Drain {
        /// How long it waits for that.
        deadline: Duration,
    },
    /// That it drains its servers and starts others in their place.
    Reload {
        /// How long it waits for requests in flight.
        deadline: Duration,
        /// The file that declares them, absolute; none: as before.
        file: Option<PathBuf>,
    },
}

/// What a pool says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub(super) enum Said {
    /// It did as it was told.
    Done,
    /// How its servers are, by replica.
    Status {
        /// The state and what is done about it, of each.
        servers: Vec<(String, Option<String>)>,
    },
    /// It did not; why, and what its server wrote last.
    Failed {
        /// A sentence with a next step.
        message: String,
        /// At most 50 lines.
        log: Vec<String>,
    },
}

/// Asks a pool, and waits for its answer this long.
///
/// # Errors
/// Nobody listens, or no answer came in time.
pub(super) fn ask(folder: &WarmFolder, pool: &str, wish: &Wish, patience: Duration) -> io::Result<Said> {
    let path = folder.file(pool, "sock")?;
    let meta = std::fs::symlink_metadata(&path)?;
    if !meta.file_type().is_socket() || meta.uid() != geteuid().as_raw() || !folder.is_ours()? {
        let what = format!("{}: it is not ours", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    let mut stream = with_short(&path, |path| UnixStream::connect(path))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(wish)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut said = String::new();
    let mut reader = BufReader::new(stream).take(MOST as u64);
    if reader.read_line(&mut said)? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it ended without an answer",
        ));
    }
    Ok(serde_json::from_str(&said)?)
}

/// Listens where commands ask a pool. Only its user can connect.
///
/// # Errors
/// The socket cannot be made.
pub(super) fn listen(folder: &WarmFolder, pool: &str) -> io::Result<UnixListener> {
    let path = folder.file(pool, "sock")?;
    // Only who has the pool's lock comes here: it is a dead one's.
    let _none = std::fs::remove_file(&path);
    let listener = with_short(&path, |path| UnixListener::bind(path))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Reads what a command wants; none for one of another user, or that says nothing sensible.
pub(super) async fn wish(connection: &Connection) -> Option<Wish> {
    let peer = connection.peer_cred().ok()?;
    if peer.uid() != geteuid().as_raw() {
        return None;
    }
    let line = tokio::time::timeout(PATIENCE, line(connection)).await.ok()??;
    serde_json::from_slice(&line).ok()
}

async fn line(connection: &Connection) -> Option<Vec<u8>> {
    let mut held = Vec::new();
    loop {
        connection.readable().await.ok()?;
        match connection.try_read_buf(&mut held) {
            Ok(0) => return None,
            Ok(_) if held.ends_with(b"\n") => return Some(held),
            Ok(_) if held.len() > MOST => return None,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

/// Answers. A command that does not listen any more misses it.
pub(super) async fn say(connection: &Connection, said: &Said) {
    let Ok(mut line) = serde_json::to_vec(said) else {
        return;
    };
    line.push(b'\n');
    let mut left = line.as_slice();
    while !left.is_empty() && connection.writable().await.is_ok() {
        match connection.try_write(left) {
            Ok(n) => left = left.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Calls `f` with a path that is short enough for a socket: that of its open folder, where its own is too long.
fn with_short<T>(path: &Path, f: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return f(path);
    };
    if path.as_os_str().len() <= LONGEST {
        return f(path);
    }
    let folder = std::fs::File::open(folder)?;
    f(&Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name))
}
