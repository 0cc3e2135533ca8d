//! Servers that the broker runs: leases, memory and processes return to zero, whatever happens.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chainette::engine::broker::{Broker, Budget, MemoryLedger, Prepare};
use chainette::engine::provision::{Mode, Need, PreparedEngine};
use chainette::engine::supervise::{Policy, Supervisor};
use chainette::engine::{CallError, Reply, Stop};
use chainette::event::EventSender;
use chainette::spec::{Backend, Concurrency, EngineSpec};
use proptest::prelude::*;

use crate::engine::{block_on, hello};
use crate::harness::BINARY;

/// The test double.
pub fn fake_engine() -> PathBuf {
    let target = Path::new(BINARY).parent().expect("a folder").to_owned();
    target.join("examples").join("fake_engine")
}

/// A server of an engine, as provision would prepare it.
pub fn prepared(engine: &str, replica: u32, flags: &[&str], need: Need) -> PreparedEngine {
    PreparedEngine {
        engine: engine.to_owned(),
        replica,
        backend: "llamacpp".to_owned(),
        mode: Mode::Binary,
        binary: Some(fake_engine()),
        lead: Vec::new(),
        flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        env: Vec::new(),
        host: "127.0.0.1".to_owned(),
        port: free_port(),
        endpoint: None,
        model_id: engine.to_owned(),
        model_path: None,
        model_digest: None,
        device_mask: None,
        slots: None,
        need,
        startup_timeout: Duration::from_secs(60),
        spec_digest: format!("digest of {engine}"),
        notes: Vec::new(),
        secrets: Vec::new(),
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it has an address").port()
}

/// An engine with servers of these flags, one per entry, each of which takes `ram` bytes.
fn with(broker: Broker, name: &str, replicas: &[&'static [&'static str]], ram: u64) -> Broker {
    let spec = EngineSpec {
        concurrency: Concurrency::Fixed(3),
        engine_wait: Duration::from_secs(120),
        ..EngineSpec::new(name, Backend::LlamaCpp, name)
    };
    let servers = replicas.iter().enumerate().map(|(at, flags)| {
        let (name, at, flags) = (name.to_owned(), u32::try_from(at).expect("few"), *flags);
        let need = Need {
            ram,
            vram: Vec::new(),
        };
        Arc::new(move |_: &dyn Fn(&str) -> std::ops::ControlFlow<()>| {
            Ok(prepared(&name, at, flags, need.clone()))
        }) as Arc<Prepare>
    });
    broker
        .with_servers(&spec, servers.collect())
        .expect("a good declaration")
}

fn policy() -> Policy {
    Policy {
        restart_first: Duration::from_millis(20),
        restart_most: Duration::from_millis(100),
        maintenance: Duration::from_millis(50),
        stillborn: Duration::ZERO,
        ..Policy::default()
    }
}

async fn through(broker: &Broker, name: &str) -> Result<Reply, Stop> {
    let ix = broker.index(name).expect("the engine is known");
    let rendered = hello(broker.engine(ix).expect("the engine is known").as_ref());
    let mut faults = 0;
    loop {
        let lease = broker.acquire(ix, 0, faults, rendered.digest).await?;
        match lease.call(&rendered, 0).await {
            Ok(reply) => return Ok(reply),
            Err(error @ CallError::Refused { .. }) => panic!("{error}"),
            Err(_) => faults += 1,
        }
    }
}

/// What is done to the engines, in any order and at the same time.
#[derive(Clone, Debug)]
enum Deed {
    /// So many requests to an engine.
    Ask(bool, usize),
    /// Requests that are given up soon.
    GiveUp(bool, usize),
    /// A server dies.
    Kill(usize),
    /// Time passes.
    Wait(u64),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        (any::<bool>(), 1..6_usize).prop_map(|(engine, n)| Deed::Ask(engine, n)),
        (any::<bool>(), 1..6_usize).prop_map(|(engine, n)| Deed::GiveUp(engine, n)),
        (0..3_usize).prop_map(Deed::Kill),
        (0..120_u64).prop_map(Deed::Wait),
    ];
    proptest::collection::vec(deed, 1..10)
}

/// The servers' processes by the files of a folder.
pub fn pids(folder: &Path) -> Vec<i32> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let handoffs = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "json"));
    let pid = |file: std::fs::DirEntry| {
        let text = std::fs::read_to_string(file.path()).ok()?;
        let handoff: serde_json::Value = serde_json::from_str(&text).ok()?;
        i32::try_from(handoff["pid"].as_i64()?).ok()
    };
    handoffs.filter_map(pid).collect()
}

pub fn kill(pid: i32) {
    let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

/// Living processes that a fake engine of this folder's run is.
fn alive(ports: &Path) -> usize {
    let mark = ports.display().to_string();
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
    let ours = processes.filter(|process| {
        let environment = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&mark)
    });
    ours.count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn leases_memory_and_children_return_to_zero(deeds in deeds()) {
        let dir = tempfile::tempdir().expect("a folder");
        let log: &'static str = Box::leak(dir.path().join("asked.log").display().to_string().into_boxed_str());
        let flags: &'static [&'static str] = Box::leak(Box::new(["--latency-ms", "5", "--log", log]));
        let folder = dir.path().join("engines");
        block_on(async {
            let memory = MemoryLedger::new(Budget { ram: 2, ..Budget::default() });
            let broker = Broker::empty(EventSender::none()).with_memory(memory);
            // Two servers of one engine, or one of the other.
            let broker = with(broker, "pair", &[flags, flags], 1);
            let broker = with(broker, "big", &[flags], 2);
            let supervisor = Supervisor::new(&folder, policy(), EventSender::none()).with_guard(BINARY.into());
            broker.start(&supervisor);
            let mut asked = tokio::task::JoinSet::new();
            for deed in deeds {
                match deed {
                    Deed::Ask(big, n) => {
                        for _ in 0..n {
                            let broker = broker.clone();
                            asked.spawn(async move {
                                through(&broker, if big { "big" } else { "pair" }).await.expect("an answer");
                            });
                        }
                    }
                    Deed::GiveUp(big, n) => {
                        for _ in 0..n {
                            let broker = broker.clone();
                            asked.spawn(async move {
                                let asking = through(&broker, if big { "big" } else { "pair" });
                                let _given_up = tokio::time::timeout(Duration::from_millis(3), asking).await;
                            });
                        }
                    }
                    Deed::Kill(nth) => {
                        if let Some(pid) = pids(&folder).get(nth) {
                            kill(*pid);
                        }
                    }
                    Deed::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                }
            }
            while let Some(done) = asked.join_next().await {
                done.expect("nobody panics");
            }
            let booked = broker.memory().booked();
            assert!(booked.ram <= 2, "booked beyond the budget: {booked:?}");
            broker.shutdown().await;
            for load in broker.load() {
                assert_eq!((load.in_flight, load.waiting), (0, 0), "{load:?}");
            }
            assert_eq!(broker.memory().booked(), Need::default());
        });
        assert_eq!(alive(dir.path()), 0, "a process is left");
        assert!(pids(&folder).is_empty());
    }
}
