//! Whoever is killed, in whatever order: nothing of a server remains, or the next sweep removes it.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use chainette::engine::supervise::{Exit, Policy};
use serde_json::json;

use super::*;

/// Another process that has a server.
struct Owner {
    child: Child,
    url: String,
}

impl Owner {
    /// Starts one in a yard, and waits until its server is ready.
    fn start(yard: &Yard, flags: &[&str], then: &str) -> Self {
        let order = json!({
            "folder": yard.supervisor.folder(), "guard": BINARY, "prepared": yard.engine(flags), "then": then,
        });
        let mut child = Command::new(fake_engine())
            .args(["--own", &order.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the example starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("UTF-8");
        let handoff: Value = serde_json::from_str(&line).expect("a handoff");
        let url = handoff["url"].as_str().expect("a URL").to_owned();
        Self { child, url }
    }

    fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// Every kind of process that a server may leave behind.
const FAMILY: &[&str] = &[
    "--grandchild",
    "group",
    "--grandchild",
    "session",
    "--grandchild",
    "bare",
];

fn family(yard: &Yard) {
    until("grandchildren", || yard.processes().len() == 4);
}

fn nothing_left(yard: &Yard, port: u16) {
    until("end of it all", || {
        yard.processes().is_empty() && yard.files().is_empty()
    });
    assert!(is_free(port));
}

#[test]
fn a_killed_owner_takes_its_server_along() {
    let yard = Yard::new();
    let mut owner = Owner::start(&yard, FAMILY, "wait");
    family(&yard);
    let guard = yard.guard();
    owner.kill();
    nothing_left(&yard, port_of(&owner.url));
    until("end of the guard", || !exists(guard));
}

#[test]
fn however_an_owner_ends_its_server_ends() {
    for then in ["panic", "exit", "abort", "return"] {
        let yard = Yard::new();
        let mut owner = Owner::start(&yard, &["--grandchild", "session"], then);
        owner.child.wait().expect("it can be waited for");
        nothing_left(&yard, port_of(&owner.url));
    }
}

#[test]
fn a_killed_owner_takes_a_stubborn_server_along() {
    let yard = Yard::new();
    let mut owner = Owner::start(&yard, &["--term", "never", "--grandchild", "stubborn"], "wait");
    until("grandchild", || yard.processes().len() >= 3);
    owner.kill();
    nothing_left(&yard, port_of(&owner.url));
}

#[tokio::test]
async fn a_killed_guard_takes_its_server_along() {
    let yard = Yard::new();
    let mut ready = yard
        .start(&[
            "--term",
            "never",
            "--grandchild",
            "group",
            "--grandchild",
            "session",
        ])
        .await;
    until("grandchildren", || yard.processes().len() == 3);
    let port = port_of(ready.url());
    kill(yard.guard());
    let Exit::Guard(how) = ready.ended().await else {
        panic!("its guard was killed")
    };
    assert_eq!(how, "was killed by signal 9 (SIGKILL)");
    let stopped = ready.stop().await;
    assert!(!stopped.clean);
    yard.assert_nothing_left();
    assert!(is_free(port));
    // And its place is free.
    yard.start(&[]).await.stop().await;
}

#[tokio::test]
async fn a_killed_guard_ends_a_start() {
    let yard = Yard::new();
    let starting = yard.fails(yard.engine(&["--never-listen", "--grandchild", "session"]));
    let killing = async {
        while yard.processes().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        kill(yard.guard());
    };
    let (failed, ()) = tokio::join!(starting, killing);
    assert!(
        failed
            .to_string()
            .contains("its guard was killed by signal 9 (SIGKILL)"),
        "{failed}"
    );
}

#[tokio::test]
async fn a_killed_server_is_told_and_leaves_nothing() {
    let yard = Yard::new();
    let mut ready = yard.start(FAMILY).await;
    family(&yard);
    kill(ready.handoff().pid);
    assert_eq!(ready.ended().await, Exit::Signal(9));
    ready.stop().await;
    yard.assert_nothing_left();
}

/// The guard and its owner at the same moment: the server dies with its guard, the rest is found by its mark.
#[test]
fn owner_and_guard_killed_at_once() {
    let yard = Yard::new();
    let mut owner = Owner::start(
        &yard,
        &[
            "--term",
            "never",
            "--grandchild",
            "group",
            "--grandchild",
            "stubborn",
        ],
        "wait",
    );
    until("grandchildren", || yard.processes().len() >= 4);
    let server = yard.pid_file()["server"]["pid"].as_u64().expect("a PID") as u32;
    let both = [owner.child.id().to_string(), yard.guard().to_string()];
    let killed = Command::new("kill").arg("-9").args(&both).status();
    assert!(killed.expect("kill starts").success());
    owner.child.wait().expect("it can be waited for");
    until("end of the server", || !yard.processes().contains(&server));
    // What is left is found by the next that looks.
    let swept = yard.supervisor.sweep().expect("the folder can be read");
    assert_eq!(swept.len(), 1);
    assert_eq!(swept[0].label, "e-0");
    assert!(swept[0].processes >= 2, "{swept:?}");
    yard.assert_nothing_left();
    assert!(is_free(port_of(&owner.url)));
    assert!(
        yard.supervisor
            .sweep()
            .expect("the folder can be read")
            .is_empty()
    );
}

/// The next start cleans up, too; and while a guard still ends a dead owner's server, it waits.
#[tokio::test]
async fn a_start_takes_the_place_of_the_dead() {
    let yard = Yard::new();
    let mut owner = Owner::start(&yard, &["--term", "never"], "wait");
    owner.kill();
    let ready = yard.start(&[]).await;
    assert!(ready.stop().await.clean);
    let mut owner = Owner::start(&yard, &["--grandchild", "session"], "wait");
    until("grandchild", || yard.processes().len() == 2);
    let both = [owner.child.id().to_string(), yard.guard().to_string()];
    Command::new("kill")
        .arg("-9")
        .args(&both)
        .status()
        .expect("kill starts");
    owner.child.wait().expect("it can be waited for");
    let ready = yard.start(&[]).await;
    assert_eq!(
        yard.processes(),
        [ready.handoff().pid],
        "the dead one's grandchild is gone"
    );
    ready.stop().await;
    yard.assert_nothing_left();
}

/// A guard that is stopped and cannot do its work, and an owner that wants it to.
#[tokio::test]
async fn a_guard_that_sleeps_does_not_keep_a_server() {
    let yard = Yard::with(Policy {
        first_term: Duration::from_millis(200),
        second_term: Duration::from_millis(200),
        ..Policy::default()
    });
    let sleep = || {
        let guard = yard.guard().to_string();
        Command::new("kill")
            .args(["-STOP", &guard])
            .status()
            .expect("kill starts");
    };
    let ready = yard.start(&["--grandchild", "session"]).await;
    sleep();
    let stopped = ready.stop().await;
    assert_eq!(
        stopped.how,
        Exit::Guard("was killed by signal 9 (SIGKILL)".to_owned())
    );
    yard.assert_nothing_left();
    // One whose owner is killed: the next that looks.
    let mut owner = Owner::start(&yard, &["--grandchild", "session"], "wait");
    until("grandchild", || yard.processes().len() == 2);
    sleep();
    owner.kill();
    yard.supervisor.sweep().expect("the folder can be read");
    yard.assert_nothing_left();
}

/// SIGTERM to a guard ends its server as a stop does; a terminal's signals do nothing.
#[tokio::test]
async fn a_guard_knows_its_signals() {
    let yard = Yard::new();
    let mut ready = yard.start(&[]).await;
    let guard = yard.guard().to_string();
    for name in ["-INT", "-HUP", "-QUIT"] {
        Command::new("kill")
            .args([name, &guard])
            .status()
            .expect("kill starts");
    }
    assert_eq!(in_flight(ready.url()), 0, "it serves on");
    Command::new("kill").arg(&guard).status().expect("kill starts");
    assert_eq!(ready.ended().await, Exit::Code(0));
    ready.stop().await;
    yard.assert_nothing_left();
}

/// Sweeping leaves alone what somebody keeps.
#[tokio::test]
async fn what_lives_is_not_swept() {
    let yard = Yard::new();
    let owner = Owner::start(&yard, &[], "wait");
    assert!(
        yard.supervisor
            .sweep()
            .expect("the folder can be read")
            .is_empty()
    );
    let running = yard.supervisor.running().expect("the folder can be read");
    assert_eq!(running.len(), 1);
    assert_eq!(
        (running[0].label.as_str(), running[0].owner),
        ("e-0", Some(owner.child.id()))
    );
    let handoff = running[0].handoff.as_ref().expect("it is healthy");
    assert_eq!(handoff.url, owner.url);
    assert_eq!(in_flight(&owner.url), 0, "it serves");
    let failed = yard.try_start(yard.engine(&[])).await.expect_err("there is one");
    assert!(
        failed
            .to_string()
            .contains(&format!("started by PID {}", owner.child.id())),
        "{failed}"
    );
}

/// Pitfall: a number that is another process' by now.
#[test]
fn a_reused_pid_is_nobody_of_ours() {
    let yard = Yard::new();
    std::fs::create_dir_all(yard.supervisor.folder()).expect("the folder is writable");
    let mut stranger = Command::new("sleep")
        .arg(&yard.nap)
        .spawn()
        .expect("a program of every system");
    let pid = stranger.id();
    let start_time = start_time(pid);
    let process = |start_time: u64| json!({"pid": pid, "start_time": start_time});
    // Its number at another time, and even its number at its time: it carries no mark of ours.
    for wrong in [start_time + 1, start_time] {
        let file = json!({
            "server": process(wrong), "nonce": "00ff", "host": host(), "guard": process(start_time + 1), "owner": process(start_time + 1),
        });
        std::fs::write(yard.path("e-0.pid"), file.to_string()).expect("the folder is writable");
        let handoff = json!({"pid": pid, "start_time": wrong});
        std::fs::write(yard.path("e-0.json"), handoff.to_string()).expect("the folder is writable");
        assert!(
            yard.supervisor
                .running()
                .expect("the folder can be read")
                .is_empty()
        );
        let swept = yard.supervisor.sweep().expect("the folder can be read");
        assert_eq!((swept.len(), swept[0].processes), (1, 0));
        assert_eq!(yard.files(), BTreeSet::new());
        assert!(
            stranger.try_wait().expect("it can be asked").is_none(),
            "it lives"
        );
    }
    stranger.kill().expect("it can be killed");
    stranger.wait().expect("it can be waited for");
}

fn start_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, rest) = stat.rsplit_once(')').expect("a name in brackets");
    rest.split_ascii_whitespace()
        .nth(19)
        .and_then(|ticks| ticks.parse().ok())
        .expect("a number")
}

/// A folder that is shared with another machine, on which the server runs: its lock is all that can be seen.
#[tokio::test]
async fn another_machines_servers_are_left_alone() {
    let yard = Yard::new();
    std::fs::create_dir_all(yard.supervisor.folder()).expect("the folder is writable");
    let process = json!({"pid": 4_194_305, "start_time": 1});
    let file = json!({"server": null, "nonce": "00", "guard": process, "owner": process, "host": "elsewhere.example"});
    std::fs::write(yard.path("e-0.pid"), file.to_string()).expect("the folder is writable");
    let log = std::fs::File::create(yard.path("e-0.log")).expect("the folder is writable");
    log.lock().expect("it is free");
    assert!(
        yard.supervisor
            .sweep()
            .expect("the folder can be read")
            .is_empty()
    );
    let failed = yard.try_start(yard.engine(&[])).await.expect_err("there is one");
    assert!(failed.to_string().contains("runs already"), "{failed}");
    assert!(yard.path("e-0.pid").exists());
    // Nobody holds it any more: a container that is gone had another name, too.
    drop(log);
    yard.start(&[]).await.stop().await;
    yard.assert_nothing_left();
}

/// Files that say nothing, and halves that nobody renamed.
#[test]
fn junk_is_swept() {
    let yard = Yard::new();
    std::fs::create_dir_all(yard.supervisor.folder()).expect("the folder is writable");
    for (name, text) in [
        ("a-0.pid", ""),
        ("b-0.pid", "{\"pid\": 1"),
        ("c-0.json", "[]"),
        ("d-0.pid", "\0\0\0"),
        ("e-0.json.4194305.new", "{"),
    ] {
        std::fs::write(yard.path(name), text).expect("the folder is writable");
    }
    std::fs::write(yard.path("notes.txt"), "not ours").expect("the folder is writable");
    let mut labels: Vec<String> = Vec::new();
    labels.extend(
        yard.supervisor
            .sweep()
            .expect("the folder can be read")
            .into_iter()
            .map(|swept| swept.label),
    );
    assert_eq!(labels, ["a-0", "b-0", "c-0", "d-0"]);
    assert_eq!(yard.files(), BTreeSet::from(["notes.txt".to_owned()]));
}

/// What others may have written, or leads elsewhere, is neither trusted nor touched.
#[tokio::test]
async fn another_users_files_are_left_alone() {
    let yard = Yard::new();
    std::fs::create_dir_all(yard.supervisor.folder()).expect("the folder is writable");
    let text = json!({"server": null, "nonce": "00", "host": host(), "guard": {"pid": 1, "start_time": 0}, "owner": {"pid": 1, "start_time": 0}});
    // Anybody may write it.
    std::fs::write(yard.path("e-0.pid"), text.to_string()).expect("the folder is writable");
    std::fs::set_permissions(yard.path("e-0.pid"), std::fs::Permissions::from_mode(0o666))
        .expect("it is ours");
    // A link to a file elsewhere.
    let elsewhere = yard.dir.path().join("elsewhere");
    std::fs::write(&elsewhere, text.to_string()).expect("the folder is writable");
    std::os::unix::fs::symlink(&elsewhere, yard.path("f-0.pid")).expect("the folder is writable");
    assert!(
        yard.supervisor
            .sweep()
            .expect("the folder can be read")
            .is_empty()
    );
    assert!(
        yard.supervisor
            .running()
            .expect("the folder can be read")
            .is_empty()
    );
    assert_eq!(
        yard.files(),
        BTreeSet::from(["e-0.pid".to_owned(), "f-0.pid".to_owned()])
    );
    let failed = yard
        .try_start(yard.engine(&[]))
        .await
        .expect_err("somebody else's file is there");
    assert!(failed.to_string().contains("another user"), "{failed}");
    assert_eq!(
        std::fs::read_to_string(&elsewhere).expect("it is there"),
        text.to_string()
    );
}

/// A guard of another program, or of another version, is an error with a next step.
#[tokio::test]
async fn a_wrong_guard_is_told() {
    let yard = Yard::new();
    let cancel = CancellationToken::new();
    let mut said = String::new();
    for program in ["/no/such/guard", "/bin/true", "/bin/cat"] {
        let supervisor = yard.supervisor.clone().with_guard(program.into());
        let failed = supervisor
            .start(yard.engine(&[]), &cancel)
            .await
            .expect_err("no guard");
        assert!(!failed.stillborn, "another guard is another start");
        said += &format!("{failed}\n");
    }
    insta::assert_snapshot!(said);
    yard.assert_nothing_left();
}

/// Owner, guard or both, at any moment of a start.
#[test]
fn killed_at_random_moments() {
    let mut dice = fastrand::Rng::with_seed(5);
    for round in 0..24 {
        let yard = Yard::new();
        let order = json!({
            "folder": yard.supervisor.folder(), "guard": BINARY, "prepared": yard.engine(FAMILY), "then": "wait",
        });
        let mut owner = Command::new(fake_engine())
            .args(["--own", &order.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the example starts");
        std::thread::sleep(Duration::from_millis(dice.u64(0..150)));
        let guards: Vec<u32> = with_argument("__guard")
            .into_iter()
            .filter(|pid| parent(*pid) == Some(owner.id()))
            .collect();
        let kill_guard = || guards.iter().for_each(|pid| kill(*pid));
        // Which of them, and which first.
        if round % 3 == 0 {
            kill_guard();
        }
        owner.kill().expect("it can be killed");
        owner.wait().expect("it can be waited for");
        if round % 3 == 1 {
            kill_guard();
        }
        // What is left of them may wait for the system to bury it.
        until("end of the guards", || {
            let living = with_argument("__guard");
            !guards.iter().any(|pid| living.contains(pid))
        });
        until("end of its files", || {
            yard.supervisor.sweep().expect("the folder can be read");
            !yard.supervisor.folder().exists() || yard.files().is_empty()
        });
        // One without any environment, whose server, guard and owner were all killed, is nobody's.
        until("end of every process", || {
            !yard.processes().into_iter().any(has_environment)
        });
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn has_environment(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| !environment.is_empty())
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("Linux");
    name.trim().to_owned()
}

/// The stages between us and a server are no commands: nobody sees them, and alone they do nothing.
#[test]
fn a_guard_without_an_owner_ends_at_once() {
    for (args, code) in [
        (vec!["__guard"], 0),
        (vec!["__exec"], 127),
        (vec!["__exec", "1", "/bin/echo", "no"], 127),
    ] {
        let output = Command::new(BINARY).args(&args).stdin(Stdio::null()).output();
        let output = output.expect("the command starts");
        // Its input is no pipe: that is told, too.
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!said.contains("no\n"), "{said}");
        if args == ["__guard"] {
            assert!(said.contains("not a pipe"), "{said}");
        } else {
            assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        }
    }
    let mut child = Command::new(BINARY)
        .arg("__guard")
        .stdin(Stdio::piped())
        .spawn()
        .expect("the command starts");
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
    for args in [vec!["--help"], vec!["completions", "bash"]] {
        let output = Command::new(BINARY)
            .args(&args)
            .output()
            .expect("the command starts");
        assert!(
            !String::from_utf8_lossy(&output.stdout).contains("__guard"),
            "{args:?}"
        );
    }
}
