//! The binary on a pseudo-terminal, and what a user would see there.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};

use crate::harness::Bench;

/// Nothing here takes longer on any machine.
const TOO_LONG: Duration = Duration::from_secs(120);

/// A run on a terminal; killed when dropped.
pub struct Terminal {
    child: Child,
    master: File,
    slave: OwnedFd,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    parser: vt100::Parser,
    bytes: Vec<u8>,
}

impl Terminal {
    /// Starts `chainette run chain.yaml in.jsonl out EXTRA` on a terminal of a size.
    pub fn start(bench: &Bench, extra: &[&str], env: &[(&str, &str)], (columns, rows): (u16, u16)) -> Self {
        let terminal = Self::start_unread(bench, extra, env, (columns, rows));
        let (mut master, seen) = (
            terminal.master.try_clone().expect("a handle can be copied"),
            terminal.seen.clone(),
        );
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Reading fails once the other side is closed.
            while let Ok(n @ 1..) = master.read(&mut buffer) {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.parser.process(&buffer[..n]);
                seen.bytes.extend_from_slice(&buffer[..n]);
            }
        });
        terminal
    }

    /// The same, and nobody reads what is written to it.
    pub fn start_unread(
        bench: &Bench,
        extra: &[&str],
        env: &[(&str, &str)],
        (columns, rows): (u16, u16),
    ) -> Self {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).expect("a pseudo-terminal");
        let stdio = || Stdio::from(pty.slave.try_clone().expect("a handle can be copied"));
        // With the terminal as its controlling one, so that Ctrl-C reaches it as from a keyboard.
        let run = bench.command(extra);
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(run.get_program())
            .args(run.get_args())
            .current_dir(bench.dir.path());
        for name in [
            "NO_COLOR",
            "LC_ALL",
            "LC_CTYPE",
            "CHAINETTE_LOG",
            "CLICOLOR_FORCE",
        ] {
            command.env_remove(name);
        }
        command.env("TERM", "xterm-256color").env("LANG", "C.UTF-8");
        command.envs(env.iter().copied());
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn();
        Self {
            child: child.expect("setsid (util-linux) starts"),
            master: File::from(pty.master),
            slave: pty.slave,
            seen: Arc::new(Mutex::new(Seen {
                parser: vt100::Parser::new(cells(rows), cells(columns), 0),
                bytes: Vec::new(),
            })),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What stands on the screen.
    pub fn screen(&self) -> String {
        self.seen().parser.screen().contents()
    }

    /// Everything that was written to it.
    pub fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.seen().bytes).into_owned()
    }

    /// The cursor's row and column, and whether it can be seen.
    pub fn cursor(&self) -> ((u16, u16), bool) {
        let seen = self.seen();
        let screen = seen.parser.screen();
        (screen.cursor_position(), !screen.hide_cursor())
    }

    /// Waits until the screen shows something.
    pub fn until(&self, what: &str, shows: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if shows(&screen) {
                return screen;
            }
            assert!(start.elapsed() < TOO_LONG, "no {what} on the screen:\n{screen}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Types on its keyboard.
    pub fn types(&self, text: &str) {
        (&self.master)
            .write_all(text.as_bytes())
            .expect("the terminal takes input");
    }

    /// Gives it another width, as a window manager does.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.seen()
            .parser
            .screen_mut()
            .set_size(cells(rows), cells(columns));
        let slave = self.slave.try_clone().expect("a handle can be copied");
        let mut stty = Command::new("stty");
        stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
        assert!(stty.stdin(slave).status().expect("stty starts").success());
    }

    /// The exit code, once it ended and all it wrote is on the screen.
    pub fn ends(&mut self) -> i32 {
        let start = Instant::now();
        let code = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status.code().unwrap_or(-1);
            }
            assert!(start.elapsed() < TOO_LONG, "it does not end:\n{}", self.screen());
            std::thread::sleep(Duration::from_millis(10));
        };
        // What it wrote before it ended is read after this mark at the latest.
        let mark = "\r\n[the end]";
        let mut tty = File::from(self.slave.try_clone().expect("a handle can be copied"));
        if self.seen().bytes.is_empty() {
            return code;
        }
        tty.write_all(mark.as_bytes())
            .expect("the terminal can be written");
        self.until("end", |screen| screen.contains("[the end]"));
        code
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _it_may_be_dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn cells(n: u16) -> NonZero<u16> {
    NonZero::new(n).expect("a terminal has lines and columns")
}
