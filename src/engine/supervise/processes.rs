//! What is known of other processes: whether they live, whose children they are, what they listen on.
//!
//! All of it is read from `/proc`. Elsewhere than on Linux only "does it live" can be told, and a server's processes
//! are its process group.

use std::net::IpAddr;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process, told from a later one of the same number by the time of its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Process {
    /// Its number.
    pub(super) pid: u32,
    /// When it started, in clock ticks after boot.
    pub(super) start_time: u64,
}

impl Process {
    /// The process that has this number now; none if there is none, or only what is left of one (a zombie).
    pub(super) fn of(pid: u32) -> Option<Self> {
        let start_time = start_time(pid)?;
        Some(Self { pid, start_time })
    }

    /// This process.
    pub(super) fn me() -> Self {
        let pid = std::process::id();
        let start_time = start_time(pid).unwrap_or_default();
        Self { pid, start_time }
    }

    /// True while it lives; false for another process that got its number.
    pub(super) fn lives(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Sends a signal, unless its number is another's by now.
    pub(super) fn signal(&self, signal: Signal) {
        if let (true, Some(pid)) = (self.lives(), as_pid(self.pid)) {
            // It may have ended this very moment.
            let _gone = kill(pid, signal);
        }
    }
}

/// A number as the system's calls take it; none for one that would mean a group or everybody.
pub(super) fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw)
}

/// This machine's name: a folder may be shared with others, whose processes cannot be seen. Empty where it is not told.
pub(super) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Who listens on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Listener {
    /// Only processes of the tree that was asked about.
    Ours,
    /// Somebody else (too).
    Other,
    /// Nobody that could be seen.
    Unseen,
    /// This system does not tell.
    Untold,
}

#[cfg(target_os = "linux")]
pub(super) use linux::{descendants, listener, marked, start_time};
#[cfg(not(target_os = "linux"))]
pub(super) use other::{descendants, listener, marked, start_time};

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::{HashMap, HashSet};
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::path::PathBuf;

    use super::{IpAddr, Listener, Process};
    use crate::engine::supervise::MARK;

    /// What `/proc/PID/stat` says.
    struct Stat {
        zombie: bool,
        parent: u32,
        start_time: u64,
    }

    /// Reads a process' state; none if there is no such process.
    fn stat(pid: u32) -> Option<Stat> {
        let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let text = String::from_utf8_lossy(&text);
        // A program's name may hold anything, brackets too.
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let zombie = matches!(fields.next()?, "Z" | "X");
        let parent = fields.next()?.parse().ok()?;
        // The state is field 3 of the line, the start is field 22.
        let start_time = fields.nth(17)?.parse().ok()?;
        Some(Stat {
            zombie,
            parent,
            start_time,
        })
    }

    /// When a living process started, in clock ticks after boot.
    pub(in super::super) fn start_time(pid: u32) -> Option<u64> {
        stat(pid).filter(|stat| !stat.zombie).map(|stat| stat.start_time)
    }

    /// The numbers of all processes.
    fn all() -> impl Iterator<Item = u32> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
    }

    /// All living processes below one, by their parents.
    pub(in super::super) fn descendants(root: u32) -> Vec<Process> {
        let mut children: HashMap<u32, Vec<(Process, bool)>> = HashMap::new();
        for pid in all() {
            if let Some(stat) = stat(pid) {
                let start_time = stat.start_time;
                let child = (Process { pid, start_time }, stat.zombie);
                children.entry(stat.parent).or_default().push(child);
            }
        }
        let (mut found, mut todo) = (Vec::new(), vec![root]);
        while let Some(parent) = todo.pop() {
            for (child, zombie) in children.remove(&parent).unwrap_or_default() {
                todo.push(child.pid);
                if !zombie {
                    found.push(child);
                }
            }
        }
        found
    }

    /// All living processes that carry a server's mark in their environment, whoever their parents are.
    pub(in super::super) fn marked(nonce: &str) -> Vec<Process> {
        let mark = format!("{MARK}={nonce}");
        let carries = |pid: &u32| {
            std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
                environment
                    .split(|byte| *byte == 0)
                    .any(|it| it == mark.as_bytes())
            })
        };
        all().filter(carries).filter_map(Process::of).collect()
    }

    /// Who listens where a request to `address` and `port` would go: only processes of `tree`?
    pub(in super::super) fn listener(address: IpAddr, port: u16, tree: &[Process]) -> Listener {
        let tables: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .filter_map(|table| std::fs::read_to_string(table).ok())
            .collect();
        if tables.is_empty() {
            return Listener::Untold;
        }
        let sockets: HashSet<String> = tables
            .iter()
            .flat_map(|table| table.lines().skip(1))
            .filter_map(|line| listening(line, address, port))
            .collect();
        if sockets.is_empty() {
            return Listener::Unseen;
        }
        let held: HashSet<String> = tree.iter().flat_map(|process| held(process.pid)).collect();
        if sockets.is_subset(&held) {
            Listener::Ours
        } else {
            Listener::Other
        }
    }

    /// The inode of a listening socket of this address, from a line of `/proc/net/tcp`:
    /// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...`.
    fn listening(line: &str, address: IpAddr, port: u16) -> Option<String> {
        const LISTEN: &str = "0A";
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (host, at) = fields.next()?.split_once(':')?;
        let listens = fields.nth(1)? == LISTEN && u16::from_str_radix(at, 16).ok()? == port;
        let host = ip(host)?;
        let inode = fields.nth(5)?;
        (listens && (host.is_unspecified() || host == address)).then(|| inode.to_owned())
    }

    /// An address as the kernel prints it: 32-bit words in the machine's byte order.
    fn ip(hex: &str) -> Option<IpAddr> {
        let word = |at: usize| {
            let word = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
            Some(word.to_ne_bytes())
        };
        if hex.len() == 8 {
            return Some(Ipv4Addr::from(word(0)?).into());
        }
        let words = [word(0)?, word(8)?, word(16)?, word(24)?];
        let bytes: [u8; 16] = words.concat().try_into().ok()?;
        Some(Ipv6Addr::from(bytes).to_canonical())
    }

    /// The inodes of a process' sockets.
    fn held(pid: u32) -> Vec<String> {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
        let links = entries.into_iter().flatten().flatten();
        let links = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.filter_map(inode).collect()
    }

    /// `socket:[4711]` → `4711`.
    fn inode(link: PathBuf) -> Option<String> {
        let text = link.to_str()?.strip_prefix("socket:[")?;
        text.strip_suffix(']').map(str::to_owned)
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use nix::sys::signal::kill;

    use super::{IpAddr, Listener, Process, as_pid};

    /// Something for every process that lives: starts are not told.
    pub(in super::super) fn start_time(pid: u32) -> Option<u64> {
        kill(as_pid(pid)?, None).is_ok().then_some(0)
    }

    /// Not told.
    pub(in super::super) fn descendants(_root: u32) -> Vec<Process> {
        Vec::new()
    }

    /// Not told.
    pub(in super::super) fn marked(_nonce: &str) -> Vec<Process> {
        Vec::new()
    }

    /// Not told.
    pub(in super::super) fn listener(_address: IpAddr, _port: u16, _tree: &[Process]) -> Listener {
        Listener::Untold
    }
}
