//! `chainette engine up`, `status`, `drain`, `reload`, `down` and `logs`, on the fake engine: what is told, and what is left.

use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{ends_within, listing, signal, stderr_of, until};
use crate::warm_harness::{Yard, assert_told, kill, pid, send};

const LIMIT: Duration = Duration::from_secs(120);

/// What a run that has a request in flight holds.
fn lease(yard: &Yard, label: &str) -> File {
    let file = File::create(yard.engines().join(format!("{label}.lease"))).expect("the folder is there");
    file.set_permissions(Permissions::from_mode(0o600))
        .expect("it is ours");
    file.lock_shared().expect("nobody drains");
    file
}

#[test]
fn up_is_kept_shown_and_gone_after_down() {
    let yard = Yard::new("replicas: 2, concurrency: 3", "");
    let up = yard.good(&["engine", "up", "chain.yaml"]);
    assert_told!("up_of_two_replicas", format!("{}\n{}", up.stdout, up.stderr));
    assert_eq!(yard.started("small"), 2);
    let told = yard.good(&["engine", "status"]);
    assert_told!("status_of_two_replicas", told.stdout);
    let again = yard.good(&["warmup", "chain.yaml"]);
    assert_eq!(again.stderr, "engine small: is up already\n");
    assert_eq!(yard.started("small"), 2, "nothing is started twice");
    let ports: Vec<String> = yard
        .status()
        .iter()
        .map(|row| row["url"].as_str().expect("a URL").to_owned())
        .collect();
    let down = yard.good(&["kill", "--all"]);
    assert_eq!(down.stderr, "engine small: is down\n");
    assert_eq!(yard.left(), [""; 0]);
    for url in ports {
        let address = url.strip_prefix("http://").expect("a URL");
        assert!(
            std::net::TcpStream::connect(address).is_err(),
            "{address} is open"
        );
    }
    assert_eq!(yard.good(&["engine", "status"]).stdout, "no engine is up\n");
    assert_eq!(
        yard.good(&["engine", "down", "--pool", "small"]).stderr,
        "engine small: is not up\n"
    );
}

#[test]
fn what_is_told_as_json() {
    let yard = Yard::new("concurrency: 3", "");
    let json = |args: &[&str]| -> Value {
        let ran = yard.good(args);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {}", ran.stdout))
    };
    let up = json(&["engine", "up", "chain.yaml", "--json"]);
    assert_told!("up_as_json", format!("{up:#}"));
    assert_eq!(
        json(&["engine", "status", "--json"])["engines"][0]["state"],
        "ready"
    );
    let reloaded = json(&["engine", "reload", "--pool", "small", "--json"]);
    assert_ne!(reloaded["engines"][0]["pid"], up["engines"][0]["pid"]);
    let lines = yard.good(&["engine", "logs", "--pool", "small", "--json"]).stdout;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).expect("each line is JSON");
        assert_eq!((&line["pool"], &line["replica"]), (&json!("small"), &json!(0)));
    }
    let drained = json(&["engine", "drain", "--pool", "small", "--json"]);
    assert_eq!(drained, json!({"stopped": ["small"], "not_up": [], "failed": []}));
    assert_eq!(json(&["engine", "down", "--all", "--json"])["stopped"], json!([]));
    // What is told while it works is JSON too, and fits the schema's names.
    let ran = yard.good(&["engine", "up", "chain.yaml", "--json-logs"]);
    for line in ran.stderr.lines() {
        let event: Value = serde_json::from_str(line).expect("each line is JSON");
        assert!(
            event["event"].as_str().expect("a name").starts_with("engine_"),
            "{line}"
        );
    }
    assert!(ran.stderr.lines().count() >= 2);
}

#[test]
fn one_that_does_not_start_leaves_nothing() {
    let yard = Yard::new("concurrency: 1", "");
    yard.declare(
        "chain.yaml",
        &[(
            "small",
            "concurrency: 1",
            "--say nonsense --exit 3 --never-listen",
        )],
    );
    let up = yard.invoke(&["engine", "up", "chain.yaml"]);
    assert_eq!((up.code, up.stdout.as_str()), (1, ""));
    assert_told!("up_of_one_that_dies", up.stderr);
    assert_eq!(yard.left(), [""; 0]);
    // A good one beside it goes, too: the command failed as a whole.
    yard.declare(
        "two.yaml",
        &[
            ("good", "concurrency: 1", ""),
            ("bad", "concurrency: 1", "--exit 3"),
        ],
    );
    let up = yard.invoke(&["engine", "up", "two.yaml"]);
    assert_eq!(up.code, 1, "{}", up.stderr);
    assert_eq!(yard.left(), [""; 0]);
    let late = "concurrency: 1, startup_timeout: 300ms";
    yard.declare("late.yaml", &[("late", late, "--never-listen")]);
    let up = yard.invoke(&["engine", "up", "late.yaml"]);
    assert_told!("up_of_one_that_never_listens", up.stderr);
    assert_eq!((up.code, yard.left()), (1, Vec::new()));
    // What is missing is told before anything is started, all at once.
    yard.bench.write(
        "none.yaml",
        "engines:\n  a: {backend: llamacpp, model: ./no.gguf, binary: ./no}\n",
    );
    let up = yard.invoke(&["engine", "up", "none.yaml"]);
    assert_told!("up_of_what_is_missing", up.stderr);
    assert_eq!(up.code, 2);
}

#[test]
fn other_settings_are_a_matter_of_reload() {
    let yard = Yard::new("concurrency: 1", "");
    yard.good(&["engine", "up", "chain.yaml"]);
    let before = yard.handoff("small-0").expect("it is ready");
    yard.declare("chain.yaml", &[("small", "concurrency: 4", "")]);
    let up = yard.invoke(&["engine", "up", "chain.yaml"]);
    assert_eq!(up.code, 1);
    assert_told!("up_with_other_settings", up.stderr);
    assert_eq!(yard.handoff("small-0").expect("as it was"), before);
    yard.good(&["engine", "reload", "chain.yaml", "--pool", "small"]);
    let after = yard.handoff("small-0").expect("the new one is ready");
    assert_eq!(after["slots"], 4);
    assert_ne!(after["spec_digest"], before["spec_digest"]);
    // One that does not start: the old one is started again, and the error is told.
    yard.declare(
        "chain.yaml",
        &[("small", "concurrency: 2", "--say broken --exit 4 --never-listen")],
    );
    let reload = yard.invoke(&["engine", "reload", "chain.yaml", "--pool", "small"]);
    assert_eq!(reload.code, 1);
    assert_told!("reload_that_rolls_back", reload.stderr);
    let back = yard.handoff("small-0").expect("the old one is ready again");
    assert_eq!(
        (&back["slots"], &back["spec_digest"], &back["draining"]),
        (&json!(4), &after["spec_digest"], &json!(false))
    );
    assert_eq!(yard.status()[0]["state"], "ready");
    // A file with problems touches nothing.
    yard.bench
        .write("chain.yaml", "engines: {small: {backend: llamacpp}}\n");
    let reload = yard.invoke(&["engine", "reload", "chain.yaml", "--pool", "small"]);
    assert_eq!(reload.code, 2, "{}", reload.stderr);
    assert_eq!(yard.handoff("small-0").expect("as it was")["pid"], back["pid"]);
    let unknown = yard.invoke(&["engine", "reload", "--pool", "smal"]);
    assert_told!("reload_of_what_is_not_up", unknown.stderr);
}

#[test]
fn a_drain_waits_for_others_and_gives_up_in_time() {
    let yard = Yard::new("replicas: 2, concurrency: 1", "");
    yard.good(&["engine", "up", "chain.yaml"]);
    let run = lease(&yard, "small-1");
    assert_eq!(yard.status()[1]["in_use"], true);
    let drain = yard.invoke(&["engine", "drain", "--pool", "small", "--deadline", "300ms"]);
    assert_eq!(drain.code, 1);
    assert_told!("drain_past_its_deadline", drain.stderr);
    for label in ["small-0", "small-1"] {
        let handoff = yard.handoff(label).expect("it serves on");
        assert_eq!(handoff["draining"], false, "{label}: `draining` is taken back");
    }
    assert_eq!(yard.started("small"), 2, "the same servers go on");
    let reload = yard.invoke(&["engine", "reload", "--pool", "small", "--deadline", "300ms"]);
    assert_eq!((reload.code, yard.started("small")), (1, 2), "{}", reload.stderr);
    // While it is drained it says so; it ends when the run is done with it.
    let mut drain = yard.spawn(&["engine", "drain", "--pool", "small", "--deadline", "100s"]);
    until("drain", || {
        yard.handoff("small-1")
            .is_some_and(|handoff| handoff["draining"] == true)
    });
    assert_eq!(yard.status()[1]["state"], "draining");
    let second = yard.invoke(&["engine", "drain", "--pool", "small"]);
    assert_told!("drain_of_what_is_drained", second.stderr);
    drop(run);
    assert_eq!(ends_within(&mut drain, LIMIT), 0);
    assert_eq!(yard.left(), [""; 0]);
}

#[test]
fn down_does_not_wait_for_a_drain() {
    let yard = Yard::new("concurrency: 1", "");
    yard.good(&["engine", "up", "chain.yaml"]);
    let _run = lease(&yard, "small-0");
    let mut drain = yard.spawn(&["engine", "drain", "--pool", "small", "--deadline", "1h"]);
    until("drain", || {
        yard.handoff("small-0")
            .is_some_and(|handoff| handoff["draining"] == true)
    });
    yard.good(&["engine", "down", "--pool", "small"]);
    assert_eq!(ends_within(&mut drain, LIMIT), 0);
    yard.until_nothing_is_left();
}

#[test]
fn a_server_that_is_killed_is_started_again() {
    let yard = Yard::new("concurrency: 1", "");
    yard.good(&["engine", "up", "chain.yaml"]);
    let first = yard.handoff("small-0").expect("it is ready");
    kill(pid(&first["pid"]));
    let new = |before: &Value| {
        yard.handoff("small-0")
            .is_some_and(|now| now["pid"] != before["pid"])
    };
    until("second server", || new(&first));
    // Its guard dies: so does it, and another one comes.
    let second = yard.handoff("small-0").expect("it is ready");
    let text = fs::read(yard.engines().join("small-0.pid")).expect("a PID file");
    let file: Value = serde_json::from_slice(&text).expect("JSON");
    kill(pid(&file["guard"]["pid"]));
    until("third server", || new(&second));
    assert_eq!(yard.started("small"), 3);
    let down = yard.good(&["engine", "down", "--all"]);
    assert_eq!(
        (down.stderr.as_str(), yard.left()),
        ("engine small: is down\n", Vec::new())
    );
}

#[test]
fn what_a_killed_keeper_leaves_is_cleaned_up() {
    let yard = Yard::new("replicas: 2, concurrency: 1", "--term never");
    yard.good(&["engine", "up", "chain.yaml"]);
    kill(yard.keeper("small"));
    let status = yard.good(&["engine", "status"]);
    // Guards may have ended their servers before anybody looked.
    assert!(!status.stdout.contains("ready"), "{}", status.stdout);
    yard.until_nothing_is_left();
    // The next `up` starts as if nothing had been.
    yard.good(&["engine", "up", "chain.yaml"]);
    assert_eq!(yard.started("small"), 4);
}

#[test]
fn keeper_and_guard_are_killed_together() {
    let yard = Yard::new("concurrency: 1", "--grandchild session");
    yard.good(&["engine", "up", "chain.yaml"]);
    let text = fs::read(yard.engines().join("small-0.pid")).expect("a PID file");
    let file: Value = serde_json::from_slice(&text).expect("JSON");
    send(yard.keeper("small"), Signal::SIGSTOP);
    kill(pid(&file["guard"]["pid"]));
    kill(yard.keeper("small"));
    let status = yard.good(&["engine", "status"]);
    assert!(status.stdout.contains("stale"), "{}", status.stdout);
    yard.until_nothing_is_left();
}

#[test]
fn foreground_ends_at_sigterm() {
    for name in ["-TERM", "-INT"] {
        let yard = Yard::new("replicas: 2, concurrency: 1", "");
        let mut command = yard.command(&["engine", "up", "chain.yaml", "--foreground"]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let head = lines.next().expect("a table when it is up").expect("UTF-8");
        assert!(head.starts_with("pool"), "{head}");
        assert_eq!(yard.keeper("small"), child.id(), "one process keeps all");
        assert!(yard.status().iter().all(|row| row["state"] == "ready"));
        signal(&child, name);
        let code = ends_within(&mut child, LIMIT);
        let told = stderr_of(&mut child);
        assert_eq!(code, 0, "{told}");
        assert_told!("foreground_until_a_signal", told);
        assert_eq!(yard.left(), [""; 0]);
    }
}

#[test]
fn foreground_ends_with_its_pools() {
    let yard = Yard::new("concurrency: 1", "");
    yard.declare(
        "two.yaml",
        &[("a", "concurrency: 1", ""), ("b", "concurrency: 1", "")],
    );
    let mut child = yard.spawn(&["engine", "up", "two.yaml", "--foreground", "--json-logs"]);
    // Not only ready: who is stopped while it starts has not started.
    until("two engines", || ["a", "b"].iter().all(|pool| yard.is_up(pool)));
    yard.good(&["engine", "down", "--pool", "a"]);
    assert_eq!(yard.status().len(), 1);
    yard.good(&["engine", "down", "--pool", "b"]);
    assert_eq!(ends_within(&mut child, LIMIT), 0);
    for line in stderr_of(&mut child).lines() {
        let _event: Value = serde_json::from_str(line).expect("each line is JSON");
    }
    assert_eq!(yard.left(), [""; 0]);
}

#[test]
fn foreground_leaves_nothing_when_one_of_its_pools_does_not_start() {
    let yard = Yard::new("concurrency: 1", "");
    yard.declare(
        "two.yaml",
        &[
            ("a", "concurrency: 1", "--boot-delay-ms 600000 --term never"),
            (
                "b",
                "concurrency: 1",
                "--exit 7 --exit-after-ms 3000 --never-listen",
            ),
        ],
    );
    let ran = yard.invoke(&["engine", "up", "two.yaml", "--foreground"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("engine `b`"), "{}", ran.stderr);
    assert_eq!(yard.started("a"), 1, "{}", ran.stderr);
    assert_eq!(yard.left(), [""; 0]);
}

#[test]
fn who_waits_no_longer_leaves_nothing() {
    let yard = Yard::new("concurrency: 1", "--boot-delay-ms 600000");
    let mut up = yard.spawn(&["engine", "up", "chain.yaml"]);
    until("server that boots", || yard.started("small") == 1);
    up.kill().expect("it runs");
    up.wait().expect("it is ours");
    yard.until_nothing_is_left();
}

#[test]
fn two_ups_at_once_start_one_pool() {
    let yard = Yard::new("concurrency: 1", "--boot-delay-ms 300");
    let mut ups = [(); 3].map(|()| yard.spawn(&["engine", "up", "chain.yaml"]));
    let codes: Vec<i32> = ups.iter_mut().map(|up| ends_within(up, LIMIT)).collect();
    let told: Vec<String> = ups.iter_mut().map(stderr_of).collect();
    assert_eq!((codes, yard.started("small")), (vec![0; 3], 1), "{told:#?}");
    assert_eq!(yard.status().len(), 1);
}

#[test]
fn idle_servers_go_and_used_ones_stay() {
    let yard = Yard::new("concurrency: 1", "");
    yard.good(&["engine", "up", "chain.yaml", "--idle-timeout", "200ms"]);
    yard.until_nothing_is_left();
    yard.good(&["engine", "up", "chain.yaml", "--idle-timeout", "3s"]);
    let run = lease(&yard, "small-0");
    let keeper = yard.keeper("small");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(
        (yard.keeper("small"), yard.started("small")),
        (keeper, 2),
        "a run uses it"
    );
    drop(run);
    yard.until_nothing_is_left();
}

#[test]
fn memory_is_one_for_all_pools() {
    let yard = Yard::new("concurrency: 1", "");
    let file = |name: &str, ram: &str| {
        let binary = crate::served::fake_engine();
        let text = format!(
            "resources: {{ram: 10MiB}}\nengines:\n  {name}: {{backend: llamacpp, model: ./model.gguf, binary: '{}', \
             memory: {{ram: {ram}}}, concurrency: 1}}\n",
            binary.display()
        );
        yard.bench.write(&format!("{name}.yaml"), text);
    };
    file("one", "6MiB");
    file("two", "5MiB");
    file("three", "4MiB");
    yard.good(&["engine", "up", "one.yaml"]);
    let up = yard.invoke(&["engine", "up", "two.yaml"]);
    assert_eq!(up.code, 1);
    assert_told!("up_without_room", up.stderr);
    yard.good(&["engine", "up", "three.yaml"]);
    yard.good(&["engine", "down", "--pool", "one"]);
    yard.good(&["engine", "up", "two.yaml"]);
    assert_eq!(yard.status().len(), 2);
}

#[test]
fn hostile_names_lead_nowhere() {
    let yard = Yard::new("concurrency: 1", "");
    yard.good(&["engine", "up", "chain.yaml"]);
    let before = listing(yard.path());
    for name in [
        "../small",
        "..",
        ".",
        "",
        "/etc/passwd",
        "a/b",
        "small\nx",
        "$(touch evil)",
        "small;x",
        ".lock",
        &"x".repeat(5000),
    ] {
        for verb in ["down", "drain", "logs", "reload"] {
            let ran = yard.invoke(&["engine", verb, "--pool", name]);
            let fine = if matches!(verb, "down" | "drain") {
                ran.code == 0
            } else {
                ran.code == 1
            };
            assert!(fine, "{verb} {name:?}: {} {}", ran.code, ran.stderr);
        }
        let status = yard.invoke(&["engine", "status", "--pool", name]);
        assert_eq!(status.code, 1, "{name:?}: {}", status.stderr);
    }
    assert_eq!(listing(yard.path()), before);
    assert_eq!(yard.status()[0]["state"], "ready");
    for name in ["../up", "a/b", ".hidden", "a\\nb"] {
        yard.bench.write(
            "hostile.yaml",
            format!(
                "engines:\n  \"{name}\": {{backend: llamacpp, model: ./model.gguf, binary: {BINARY}}}\n",
                BINARY = "/bin/true"
            ),
        );
        let up = yard.invoke(&["engine", "up", "hostile.yaml"]);
        assert_ne!(up.code, 0, "{name}");
        assert_eq!(listing(yard.path()).len(), before.len() + 1, "{name}");
    }
}

#[test]
fn files_of_others_are_not_believed() {
    let yard = Yard::new("concurrency: 1", "");
    yard.good(&["engine", "up", "chain.yaml"]);
    let handoff = yard.engines().join("small-0.json");
    let rights = |path: &std::path::Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours")
    };
    rights(&handoff, 0o666);
    assert_ne!(
        yard.status()[0]["state"],
        "ready",
        "anybody could have written it"
    );
    rights(&handoff, 0o600);
    assert_eq!(yard.status()[0]["state"], "ready");
    // A folder that anybody can write to is not used at all.
    rights(&yard.engines(), 0o777);
    let told = yard.invoke(&["engine", "status"]);
    assert_eq!(told.code, 1);
    assert_told!("a_folder_that_others_can_write_to", told.stderr);
    rights(&yard.engines(), 0o700);
    // A note whose process is gone and whose number is another's now: PIDs are used again.
    let path = yard.engines().join("ghost.pool");
    let text = fs::read(yard.engines().join("small.pool")).expect("a note");
    let mut note: Value = serde_json::from_slice(&text).expect("JSON");
    note["pool"] = json!("ghost");
    note["pid"] = json!(std::process::id());
    note["start_time"] = json!(1);
    fs::write(&path, note.to_string()).expect("it is ours");
    rights(&path, 0o600);
    let kill = yard.good(&["engine", "down", "--pool", "ghost"]);
    assert!(
        kill.stderr.starts_with("engine ghost: is not up"),
        "{}",
        kill.stderr
    );
    assert!(!path.exists(), "and it is cleaned up");
    // A link in the place of a file leads nowhere.
    let target = yard.path().join("target");
    fs::write(&target, "precious").expect("the folder is ours");
    std::os::unix::fs::symlink(&target, yard.engines().join("linked.lock")).expect("a link");
    yard.declare("linked.yaml", &[("linked", "concurrency: 1", "")]);
    let up = yard.invoke(&["engine", "up", "linked.yaml"]);
    assert_eq!(up.code, 1, "{}", up.stderr);
    assert_eq!(fs::read_to_string(&target).expect("it is there"), "precious");
}

#[test]
fn a_long_path_is_no_obstacle() {
    let yard = Yard::new("concurrency: 1", "");
    let deep = yard.path().join("d".repeat(90)).join("e".repeat(90));
    let invoke = |args: &[&str]| {
        let output = yard
            .command(args)
            .env("XDG_STATE_HOME", &deep)
            .stdin(Stdio::null())
            .output();
        yard.bench.ran(&output.expect("the command starts"))
    };
    let up = invoke(&["engine", "up", "chain.yaml"]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    assert_eq!(invoke(&["engine", "drain", "--pool", "small"]).code, 0);
    assert_eq!(yard.processes(), [""; 0]);
}

#[test]
fn logs_are_shown_and_followed() {
    let yard = Yard::new("concurrency: 1", "--say one --say two --say three");
    yard.good(&["engine", "up", "chain.yaml"]);
    let last = yard.good(&["engine", "logs", "--pool", "small", "--tail", "3"]);
    assert_eq!(last.stdout.lines().next(), Some("two"), "{}", last.stdout);
    let mut command = yard.command(&["engine", "logs", "--pool", "small", "--tail", "0", "--follow"]);
    let mut follow = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(follow.stdout.take().expect("piped")).lines();
    yard.good(&["engine", "reload", "--pool", "small"]);
    // It may have begun to follow before or after the new server wrote: something comes in either case.
    send(
        pid(&yard.handoff("small-0").expect("it is ready")["pid"]),
        Signal::SIGKILL,
    );
    let line = lines.next().expect("a line").expect("UTF-8");
    assert!(
        ["one", "two", "three"].contains(&line.as_str()) || line.starts_with("http"),
        "{line}"
    );
    follow.kill().expect("it runs");
    follow.wait().expect("it is ours");
    // The log outlives the server.
    yard.good(&["engine", "down", "--all"]);
    assert!(
        yard.good(&["engine", "logs", "--pool", "small"])
            .stdout
            .contains("three")
    );
    let none = yard.invoke(&["engine", "logs", "--pool", "other"]);
    assert_told!("logs_of_what_never_was", none.stderr);
}

#[test]
fn the_table_of_engines_knows_warm_ones() {
    let yard = Yard::new("concurrency: 1", "");
    let table = |name: &str| assert_told!(name, yard.good(&["engines", "chain.yaml"]).stdout);
    table("engines_not_running");
    yard.good(&["engine", "up", "chain.yaml"]);
    table("engines_kept_warm");
    yard.declare("chain.yaml", &[("small", "concurrency: 7", "")]);
    table("engines_with_other_settings");
    let status = yard.good(&["engine", "status", "chain.yaml", "--json"]);
    assert!(status.stdout.contains("ready"));
    fs::remove_file(yard.path().join("model.gguf")).expect("it is there");
    table("engines_that_miss_something");
}

#[test]
fn one_that_keeps_dying_is_told_as_failed() {
    let yard = Yard::new("concurrency: 1", "--exit 5 --exit-after-ms 1000 --say tired");
    yard.good(&["engine", "up", "chain.yaml"]);
    until("failure", || yard.status()[0]["state"] == "failed");
    until("start after that", || yard.started("small") > 2);
    let mut reason = None;
    until("reason", || {
        let row = yard.status().remove(0);
        reason = row["reason"]
            .as_str()
            .filter(|_| row["state"] == "failed")
            .map(str::to_owned);
        reason.is_some()
    });
    assert!(reason.expect("just found").contains("exited with status 5"));
    yard.good(&["engine", "down", "--all"]);
    assert_eq!(yard.left(), [""; 0]);
}

#[test]
fn files_of_a_pool_go_with_it_and_others_stay() {
    let yard = Yard::new("replicas: 2, concurrency: 1", "");
    yard.good(&["engine", "up", "chain.yaml"]);
    // Only the second server was ever used; and there is a pool of a similar name.
    drop(lease(&yard, "small-1"));
    drop(lease(&yard, "small-1-0"));
    fs::write(yard.engines().join("dead.lock"), "").expect("it is ours");
    yard.good(&["engine", "down", "--pool", "small"]);
    assert_eq!(yard.left(), ["small-1-0.lease"]);
}
