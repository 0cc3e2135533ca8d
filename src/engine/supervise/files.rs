//! The files of a server: PID file, handoff, log. Only for their owner, and replaced as a whole.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use fs_err::{self as fs, File, OpenOptions};
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Handoff;
use super::processes::Process;

/// No file of ours is longer.
const MOST: u64 = 1 << 20;
/// The longest label.
const LONGEST: usize = 200;

/// Where one server's files are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Files {
    /// `{pool}-{replica}.pid`.
    pub(super) pid: PathBuf,
    /// `{pool}-{replica}.json`.
    pub(super) handoff: PathBuf,
    /// `{pool}-{replica}.log`.
    pub(super) log: PathBuf,
}

impl Files {
    /// Those of a label, which must not lead out of the folder.
    pub(super) fn new(folder: &Path, label: &str) -> io::Result<Self> {
        check_label(label)?;
        let file = |kind: &str| folder.join(format!("{label}.{kind}"));
        Ok(Self {
            pid: file("pid"),
            handoff: file("json"),
            log: file("log"),
        })
    }

    /// Removes the handoff if it is of this server: it may be that of a later one.
    pub(super) fn remove_handoff_of(&self, server: Process) {
        let handoff = read::<Handoff>(&self.handoff);
        if handoff.is_ok_and(|it| (it.pid, it.start_time) == (server.pid, server.start_time)) {
            self.remove_handoff();
        }
    }

    /// Removes the handoff.
    pub(super) fn remove_handoff(&self) {
        // A server that never became healthy has none.
        let _none = fs::remove_file(&self.handoff);
    }

    /// Removes PID file and handoff; the log stays.
    pub(super) fn remove(&self) {
        self.remove_handoff();
        let _none = fs::remove_file(&self.pid);
    }
}

/// A name that files can carry, and that does not lead out of their folder.
pub(crate) fn check_label(label: &str) -> io::Result<()> {
    let plain = !label.starts_with('.') && !label.contains(['/', '\0']) && label.len() <= LONGEST;
    if label.is_empty() || !plain {
        let wrong = format!("`{label}` cannot be a file's name");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
    }
    Ok(())
}

/// When a living process started, in clock ticks after boot.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    Process::of(pid).map(|process| process.start_time)
}

/// How long ago a process started, by its start; where the system tells.
pub(crate) fn age(start_time: u64) -> Option<std::time::Duration> {
    /// Clock ticks per second in `/proc`, on every Linux there is.
    const TICKS: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let up: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    std::time::Duration::try_from_secs_f64(up - start_time as f64 / TICKS).ok()
}

/// True while the process of this number and start lives.
pub(crate) fn lives(pid: u32, start_time: u64) -> bool {
    Process { pid, start_time }.lives()
}

/// What a PID file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PidFile {
    /// The server; none for the moment before it is started.
    pub(super) server: Option<Process>,
    /// What its processes carry in their environment.
    pub(super) nonce: String,
    /// Its guard.
    pub(super) guard: Process,
    /// Who had it started.
    pub(super) owner: Process,
    /// The machine's name.
    pub(super) host: String,
}

/// Makes a folder that only we can enter, and refuses another user's.
pub(crate) fn private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(at(folder))?;
    let meta = fs::metadata(folder)?;
    if meta.uid() != geteuid().as_raw() {
        return Err(at(folder)(foreign()));
    }
    if meta.mode() & 0o777 != 0o700 {
        fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Puts the path into an error.
fn at(path: &Path) -> impl Fn(io::Error) -> io::Error {
    let path = path.display().to_string();
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

fn foreign() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "it belongs to another user, others may write it, or it is a link",
    )
}

/// Replaces a file as a whole: nobody ever sees half of it, and nobody else can read it.
pub(crate) fn replace(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    let new = path.with_added_extension(format!("{}.new", std::process::id()));
    let write = || {
        // What a process of our number left once.
        let _none = fs::remove_file(&new);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&new)?;
        file.write_all(&text)?;
        fs::rename(&new, path)
    };
    write().inspect_err(|_| {
        let _none = fs::remove_file(&new);
    })
}

/// Reads a file that we wrote; an error for one that is another user's, a link, or not what it should be.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let file = open_own(path, OpenOptions::new().read(true))?;
    let mut text = Vec::new();
    file.take(MOST).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|error| at(path)(error.into()))
}

/// Opens a file of ours, through no link; [`io::ErrorKind::PermissionDenied`] for one that is not ours alone to write.
pub(crate) fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = options.custom_flags(flags.bits()).open(path).map_err(|error| {
        let is_link = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
        if is_link { at(path)(foreign()) } else { error }
    })?;
    let meta = file.metadata()?;
    if meta.uid() != geteuid().as_raw() || !meta.is_file() || meta.mode() & 0o022 != 0 {
        return Err(at(path)(foreign()));
    }
    Ok(file)
}

/// True for a folder of ours, false where there is none.
pub(crate) fn owned_folder(folder: &Path) -> io::Result<bool> {
    match fs::metadata(folder) {
        Ok(meta) if meta.uid() == geteuid().as_raw() => Ok(true),
        Ok(_) => Err(at(folder)(foreign())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
