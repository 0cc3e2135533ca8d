//! From a prepared engine to one that is ready, or to the reason why not.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use chainette::engine::supervise::{Cause, Exit, Handoff, Policy};

use super::*;
use crate::server::{Answer, TestServer};

#[tokio::test]
async fn a_server_that_loads_is_waited_for() {
    let yard = Yard::new();
    let ready = yard
        .start(&[
            "--boot-delay-ms",
            "200",
            "--loading-ms",
            "300",
            "--like",
            "llamacpp",
            "--parallel",
            "7",
        ])
        .await;
    assert_eq!(ready.slots(), Some(7));
    assert_eq!(ready.handoff().engine_version.as_deref(), Some("b4711-fake"));
    assert!(ready.stop().await.clean);
    yard.assert_nothing_left();
}

#[tokio::test]
async fn the_handoff_says_what_others_need() {
    let yard = Yard::new();
    let mut prepared = yard.engine(&["--like", "vllm"]);
    prepared.backend = "vllm".to_owned();
    prepared.model_path = Some("/models/m".into());
    prepared.model_digest = Some("sha256:00".to_owned());
    prepared.device_mask = Some("0,1".to_owned());
    prepared.slots = Some(3);
    let ready = yard.try_start(prepared).await.expect("it starts");
    let text = std::fs::read_to_string(yard.path("e-0.json")).expect("there is a handoff");
    let written: Handoff = serde_json::from_str(&text).expect("a handoff");
    assert_eq!(&written, ready.handoff());
    let pid = yard.pid_file()["server"]["pid"].as_u64().expect("a PID");
    assert_eq!(u64::from(written.pid), pid);
    assert_eq!(yard.processes(), [written.pid]);
    let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("it is ours");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(
        environment.contains("\0CUDA_VISIBLE_DEVICES=0,1\0"),
        "{environment}"
    );
    let mut shown: Value = serde_json::from_str(&text).expect("JSON");
    for (name, place) in [("pid", "PID"), ("start_time", "TICKS"), ("url", "URL")] {
        shown[name] = place.into();
    }
    shown["flags"][1] = "NAP".into();
    insta::assert_snapshot!(serde_json::to_string_pretty(&shown).expect("JSON"));
    for (path, mode) in [
        ("e-0.json", 0o600),
        ("e-0.pid", 0o600),
        ("e-0.log", 0o600),
        ("", 0o700),
    ] {
        let found = std::fs::metadata(yard.path(path))
            .expect("it is there")
            .permissions();
        assert_eq!(found.mode() & 0o777, mode, "{path}");
    }
    ready.stop().await;
}

#[tokio::test]
async fn versions_and_slots_are_those_of_the_server() {
    for (backend, pages, version, slots) in [
        ("vllm", Some("vllm"), "0.32.0+fake", None),
        ("tgi", Some("tgi"), "3.3.6-fake", Some(4)),
        // Its program is asked, as it has no page that tells.
        ("llamacpp", None, "version: 1.2.3 (fake)", None),
    ] {
        let yard = Yard::new();
        let mut prepared = yard.engine(&pages.map_or(vec![], |pages| vec!["--like", pages]));
        prepared.backend = backend.to_owned();
        let ready = yard.try_start(prepared).await.expect("it starts");
        let handoff = ready.handoff();
        assert_eq!(
            (handoff.engine_version.as_deref(), handoff.slots),
            (Some(version), slots),
            "{backend}"
        );
        ready.stop().await;
    }
}

/// A program that knows no `--version`, and does something else instead, is ended.
#[tokio::test]
async fn asking_for_a_version_leaves_nothing() {
    let yard = Yard::with(Policy {
        health_patience: Duration::from_millis(300),
        ..Policy::default()
    });
    let script = yard.dir.path().join("server.sh");
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then sleep {} & sleep {}; fi\nexec {} \"$@\"\n",
        yard.nap,
        yard.nap,
        fake_engine().display(),
    );
    std::fs::write(&script, text).expect("the folder is writable");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let mut prepared = yard.engine(&[]);
    prepared.binary = Some(script);
    let ready = yard.try_start(prepared).await.expect("it starts");
    assert_eq!(ready.handoff().engine_version, None);
    until("end of the question", || {
        yard.processes() == [ready.handoff().pid]
    });
    ready.stop().await;
    yard.assert_nothing_left();
}

/// `/metrics` is looked at once; a server that should have it and has not gets a warning.
#[tokio::test]
async fn missing_metrics_are_told() {
    for (flags, warned) in [
        (vec!["--metrics"], true),
        (vec!["--metrics", "--like", "llamacpp"], false),
        (vec![], false),
    ] {
        let yard = Yard::new();
        yard.start(&flags).await.stop().await;
        let events = yard.events();
        let told = events
            .iter()
            .any(|event| matches!(event, Event::Warning { message } if message.contains("no /metrics")));
        assert_eq!(told, warned, "{flags:?}: {events:?}");
    }
}

/// Pitfall: the wait for health ignores that the server is gone.
#[tokio::test]
async fn an_exit_while_loading_ends_the_wait_at_once() {
    let yard = Yard::new();
    let mut prepared = yard.engine(&[
        "--loading-ms",
        "900000",
        "--exit",
        "3",
        "--exit-after-ms",
        "200",
        "--say",
        "so it goes",
    ]);
    // The test would take as long.
    prepared.startup_timeout = Duration::from_secs(3600);
    let failed = yard.fails(prepared).await;
    assert_eq!(failed.error, Cause::Ended(Exit::Code(3)));
    assert_eq!(failed.log_tail[0], "so it goes");
}

/// Pitfall: a socket that is taken and never answered blocks the wait.
#[tokio::test]
async fn a_hung_socket_does_not_outlast_an_exit() {
    let yard = Yard::new();
    let mut prepared = yard.engine(&["--mute", "--exit", "4", "--exit-after-ms", "300"]);
    prepared.startup_timeout = Duration::from_secs(3600);
    let failed = yard.fails(prepared).await;
    assert_eq!(failed.error, Cause::Ended(Exit::Code(4)));
}

#[tokio::test]
async fn a_hung_socket_is_late_not_endless() {
    let policy = Policy {
        health_patience: Duration::from_millis(50),
        ..Policy::default()
    };
    let yard = Yard::with(policy);
    let mut prepared = yard.engine(&["--mute"]);
    prepared.startup_timeout = Duration::from_secs(3);
    let failed = yard.fails(prepared).await;
    let Cause::Late { last, .. } = &failed.error else {
        panic!("{failed}")
    };
    assert_eq!(last, "it did not answer /health");
}

#[tokio::test]
async fn a_port_that_never_opens_is_late() {
    let yard = Yard::new();
    let mut prepared = yard.engine(&["--never-listen", "--term", "never"]);
    prepared.startup_timeout = Duration::from_millis(1500);
    let failed = yard.fails(prepared).await;
    assert!(!failed.stillborn);
    insta::assert_snapshot!(failed.to_string());
}

#[tokio::test]
async fn one_that_loads_for_ever_is_late() {
    let yard = Yard::new();
    let mut prepared = yard.engine(&["--loading-ms", "900000"]);
    prepared.startup_timeout = Duration::from_secs(2);
    let failed = yard.fails(prepared).await;
    insta::assert_snapshot!(failed.to_string());
}

#[tokio::test]
async fn a_start_can_be_cancelled() {
    let yard = Yard::new();
    let cancel = CancellationToken::new();
    let starting = yard.supervisor.start(
        yard.engine(&["--loading-ms", "900000", "--grandchild", "session"]),
        &cancel,
    );
    let cancelling = async {
        while yard.processes().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
    };
    let (started, ()) = tokio::join!(starting, cancelling);
    let failed = started.expect_err("it was cancelled");
    assert_eq!((failed.error, failed.stillborn), (Cause::Cancelled, false));
    yard.assert_nothing_left();
}

/// A start that nobody waits for any longer ends what it began.
#[tokio::test]
async fn a_start_that_is_dropped_leaves_nothing() {
    let yard = Yard::new();
    {
        let cancel = CancellationToken::new();
        let starting = yard.supervisor.start(
            yard.engine(&["--never-listen", "--grandchild", "session"]),
            &cancel,
        );
        let begun = async {
            while yard.processes().len() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = starting => panic!("it never listens"),
            () = begun => {}
        }
    }
    until("end of it", || {
        yard.processes().is_empty() && yard.files().is_empty()
    });
}

#[tokio::test]
async fn a_port_in_use_is_another_port() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port();
    let yard = Yard::new();
    let mut prepared = yard.engine(&[]);
    prepared.port = port;
    let ready = yard.try_start(prepared).await.expect("it starts elsewhere");
    assert_ne!(port_of(ready.url()), port);
    let told = yard.events().into_iter().any(|event| {
        matches!(event, Event::EngineStarting { reason, .. } if reason.starts_with(&format!("port {port} is taken")))
    });
    assert!(told);
    ready.stop().await;
    yard.assert_nothing_left();
}

/// Three more ports are tried, and no fourth; each try is a process that says why it gave up.
#[tokio::test]
async fn ports_are_tried_three_times_more() {
    let yard = Yard::new();
    let pids = yard.dir.path().join("pids");
    let pids = pids.to_str().expect("UTF-8");
    let say = "main: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1";
    let prepared = yard.engine(&["--say", say, "--exit", "1", "--pid-file", pids, "--never-listen"]);
    let failed = yard.fails(prepared).await;
    assert!(
        matches!(failed.error, Cause::PortTaken { tries: 4, .. }),
        "{failed}"
    );
    assert!(!failed.stillborn, "another port is another start");
    let started = std::fs::read_to_string(pids).expect("it was started");
    assert_eq!(started.lines().count(), 4);
    let shown = failed
        .to_string()
        .replace(&port_in(&failed.error).to_string(), "PORT");
    insta::assert_snapshot!(shown);
}

fn port_in(cause: &Cause) -> u16 {
    match cause {
        Cause::PortTaken { port, .. } => *port,
        other => panic!("{other}"),
    }
}

/// Somebody else answers 200 at our server's address, from a port that it opened after we looked: no readiness.
#[tokio::test]
async fn another_program_on_the_port_is_never_taken_for_ours() {
    let yard = Yard::new();
    // The first server never listens; the stranger takes its port meanwhile.
    let script = yard.dir.path().join("server.sh");
    let first = yard.dir.path().join("first");
    let text = format!(
        "#!/bin/sh\nif [ ! -e {first} ]; then echo \"$@\" > {first}.args; mv {first}.args {first}; exec {fake} \"$@\" --never-listen; fi\nexec {fake} \"$@\"\n",
        first = first.display(),
        fake = fake_engine().display(),
    );
    std::fs::write(&script, text).expect("the folder is writable");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let mut prepared = yard.engine(&[]);
    prepared.binary = Some(script);
    let strange = std::thread::spawn(move || {
        until("first server", || first.exists());
        let args = std::fs::read_to_string(&first).expect("its arguments");
        let mut words = args.split_whitespace();
        words.find(|word| *word == "--port").expect("a port is given");
        let port = words.next().and_then(|port| port.parse().ok()).expect("a number");
        TestServer::start_on(port, None, |_| Answer::text("I am somebody else"))
    });
    let ready = yard.try_start(prepared).await.expect("it starts elsewhere");
    let strange = strange.join().expect("no panic");
    assert_ne!(port_of(ready.url()), strange.port());
    assert_eq!(strange.stats().asked, 0, "nothing was sent to a stranger");
    ready.stop().await;
    yard.assert_nothing_left();
}

#[tokio::test]
async fn a_server_that_dies_at_once_is_stillborn() {
    let yard = Yard::new();
    let lines: Vec<String> = (0..70).map(|n| format!("line {n}")).collect();
    let mut flags = vec!["--exit", "1", "--never-listen"];
    lines.iter().for_each(|line| flags.extend(["--say", line]));
    flags.extend(["--say", "\x1b[31merror:\x1b[0m unknown argument: --flsh-attn"]);
    let failed = yard.fails(yard.engine(&flags)).await;
    assert!(failed.stillborn);
    assert_eq!(failed.log_tail.len(), 50);
    assert_eq!(failed.log_tail[0], "line 21");
    assert_eq!(failed.log_tail[49], "error: unknown argument: --flsh-attn");
    assert_eq!(failed.log, yard.path("e-0.log"));
    insta::assert_snapshot!(failed.to_string());
    // The tail is that of the last start.
    let failed = yard
        .fails(yard.engine(&["--exit", "2", "--never-listen", "--say", "another time"]))
        .await;
    assert_eq!(failed.log_tail, ["another time"]);
}

/// One that was ready before may be ready again.
#[tokio::test]
async fn what_lived_once_is_not_stillborn() {
    let yard = Yard::new();
    yard.start(&[]).await.stop().await;
    let failed = yard.fails(yard.engine(&["--exit", "1", "--never-listen"])).await;
    assert!(!failed.stillborn);
}

#[tokio::test]
async fn every_failure_has_its_advice() {
    let cases: &[(&str, &[&str])] = &[
        ("CUDA", &["ggml_cuda: failed", "CUDA error: out of memory"]),
        (
            "torch",
            &["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."],
        ),
        (
            "missing model",
            &[
                "gguf_init_from_file: failed to open GGUF file 'x.gguf' (No such file or directory)",
                "llama_model_load: error loading model",
            ],
        ),
        ("flag", &["error: invalid argument: --parallell"]),
        ("vLLM flag", &["vllm: error: unrecognized arguments: --foo"]),
        (
            "library",
            &[
                "llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file: No such file or directory",
            ],
        ),
        (
            "gated",
            &["huggingface_hub.errors.GatedRepoError: 403 Client Error. Cannot access gated repo for url"],
        ),
        ("no GPU", &["RuntimeError: Failed to infer device type"]),
        (
            "architecture",
            &["llama_model_load: error loading model: unknown model architecture: 'foo9'"],
        ),
        (
            "memory",
            &["ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 68719476736"],
        ),
        (
            "context",
            &[
                "ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be stored in KV cache",
            ],
        ),
        ("other", &["something nobody has ever seen"]),
        ("silent", &[]),
    ];
    let mut said = String::new();
    for (name, lines) in cases {
        let yard = Yard::new();
        let mut flags = vec!["--exit", "1", "--never-listen"];
        lines.iter().for_each(|line| flags.extend(["--say", line]));
        let failed = yard.fails(yard.engine(&flags)).await;
        said += &format!("{name}: {failed}\n");
    }
    let yard = Yard::new();
    let mut prepared = yard.engine(&[]);
    prepared.binary = Some("/no/such/program".into());
    said += &format!("no program: {}\n", yard.fails(prepared).await);
    let mut prepared = yard.engine(&[]);
    let text = yard.dir.path().join("text");
    std::fs::write(&text, "no program").expect("the folder is writable");
    prepared.binary = Some(text);
    let failed = yard.fails(prepared).await.to_string();
    let dir = yard.dir.path().display().to_string();
    said += &format!("no right: {}\n", failed.replace(&dir, "DIR"));
    let mut prepared = yard.engine(&[]);
    prepared.mode = Mode::External;
    said += &format!("external: {}\n", yard.fails(prepared).await);
    insta::assert_snapshot!(said);
}

#[tokio::test]
async fn a_death_by_the_system_is_guessed_at() {
    let yard = Yard::new();
    let starting = async { yard.fails(yard.engine(&["--never-listen"])).await };
    let killing = async {
        while yard.processes().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        yard.processes().into_iter().for_each(kill);
    };
    let (failed, ()) = tokio::join!(starting, killing);
    insta::assert_snapshot!(failed.to_string());
}

/// Pitfall: one fixed name for all handoffs.
#[tokio::test]
async fn every_server_has_files_of_its_own() {
    let yard = Yard::new();
    let mut started = Vec::new();
    for (engine, replica) in [("a", 0), ("a", 1), ("a-1", 0), ("b.c", 0)] {
        let mut prepared = yard.engine(&[]);
        prepared.engine = engine.to_owned();
        prepared.replica = replica;
        started.push(yard.try_start(prepared).await.expect("it starts"));
    }
    let names = ["a-0", "a-1", "a-1-0", "b.c-0"];
    let expected = names
        .iter()
        .flat_map(|name| [format!("{name}.json"), format!("{name}.pid")]);
    assert_eq!(yard.files(), expected.collect());
    let ports: BTreeSet<u16> = started.iter().map(|ready| port_of(ready.url())).collect();
    assert_eq!(ports.len(), 4);
    assert_eq!(yard.supervisor.running().expect("it can be read").len(), 4);
    for ready in started {
        ready.stop().await;
    }
    yard.assert_nothing_left();
}

/// Ids cannot lead out of the folder.
#[tokio::test]
async fn names_stay_in_their_folder() {
    for name in ["../e", "/tmp/e", "a/b", ".e", "", &"e".repeat(300)] {
        let yard = Yard::new();
        let mut prepared = yard.engine(&[]);
        prepared.engine = name.to_owned();
        // An empty name is `-0`.
        match yard.try_start(prepared).await {
            Err(failed) => assert!(matches!(failed.error, Cause::Files(_)), "{failed}"),
            Ok(ready) => {
                assert_eq!(name, "");
                ready.stop().await;
            }
        }
        assert_eq!(
            listing(yard.dir.path()),
            BTreeSet::from(["engines".to_owned()]),
            "{name}"
        );
    }
}

/// Pitfall: paths that depend on where the program works.
#[tokio::test]
async fn relative_folders_are_made_absolute() {
    let supervisor = Supervisor::new("some/engines", Policy::default(), EventSender::none());
    let here = std::env::current_dir().expect("a folder");
    assert_eq!(supervisor.folder(), here.join("some/engines"));
    assert!(
        !here.join("some").exists(),
        "nothing is made before something is started"
    );
    assert!(supervisor.sweep().expect("no folder is no error").is_empty());
}

#[tokio::test]
async fn a_second_server_of_the_same_name_is_refused() {
    let yard = Yard::with(Policy {
        first_term: Duration::from_millis(100),
        second_term: Duration::from_millis(100),
        ..Policy::default()
    });
    let ready = yard.start(&[]).await;
    let failed = yard.try_start(yard.engine(&[])).await.expect_err("there is one");
    assert!(
        matches!(failed.error, Cause::Busy { pid, .. } if pid == yard.guard()),
        "{failed}"
    );
    assert_eq!(in_flight(ready.url()), 0, "the first is unharmed");
    ready.stop().await;
    yard.assert_nothing_left();
}

/// Values of variables that are secret by their names, and a long log, in what is shown.
#[tokio::test]
async fn tails_show_no_secrets() {
    let yard = Yard::new();
    let mut prepared = yard.engine(&[
        "--exit",
        "1",
        "--never-listen",
        "--say",
        "using token hf_planted_secret for the hub",
    ]);
    prepared.env = vec![("HF_TOKEN".to_owned(), "hf_planted_secret".to_owned())];
    let failed = yard.fails(prepared).await;
    assert_eq!(failed.log_tail, ["using token *** for the hub"]);
    assert!(!format!("{failed:?}").contains("planted"));
}

/// A log that is too long is put aside.
#[tokio::test]
async fn a_long_log_is_put_aside() {
    let yard = Yard::with(Policy {
        log_most: 100,
        ..Policy::default()
    });
    let long = "x".repeat(200);
    yard.start(&["--say", &long]).await.stop().await;
    let ready = yard.start(&["--say", "short"]).await;
    let aside = std::fs::read_to_string(yard.path("e-0.log.1")).expect("it was put aside");
    assert!(aside.starts_with(&long));
    assert_eq!(ready.log_tail()[0], "short");
    ready.stop().await;
}
