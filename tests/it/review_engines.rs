//! Defects of the engine layer found in review; each test failed before its fix.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chainette::engine::broker::{Broker, Budget, MemoryLedger, Prepare, ServerState, Sharing};
use chainette::engine::provision::{Need, PreparedEngine};
use chainette::engine::supervise::{Policy, Supervisor};
use chainette::engine::warm::WarmFolder;
use chainette::engine::{CallError, Chat, Message, Rendered, Request, Role, Stop};
use chainette::event::EventSender;
use chainette::spec::{Backend, Concurrency, EngineSpec, Launch, Sampling};

use crate::engine::block_on;
use crate::harness::BINARY;
use crate::served::{kill, pids, prepared};

/// Longer than anything here takes, on any machine.
const LIMIT: Duration = Duration::from_secs(100);

/// An engine `e` with servers of these flags; the fields of `spec` but its name hold.
fn with_servers(spec: EngineSpec, servers: &[&[&str]]) -> Broker {
    let prepare = |(at, flags): (usize, &&[&str])| -> Arc<Prepare> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let at = u32::try_from(at).expect("few");
        Arc::new(move |_: &dyn Fn(&str) -> ControlFlow<()>| {
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            Ok(PreparedEngine {
                startup_timeout: 30 * LIMIT,
                ..prepared("e", at, &flags, Need::default())
            })
        })
    };
    Broker::empty(EventSender::none())
        .with_memory(MemoryLedger::new(Budget::default()))
        .with_servers(&spec, servers.iter().enumerate().map(prepare).collect())
        .expect("a good declaration")
}

fn spec() -> EngineSpec {
    EngineSpec {
        concurrency: Concurrency::Fixed(3),
        ..EngineSpec::new("e", Backend::LlamaCpp, "e")
    }
}

fn policy() -> Policy {
    Policy {
        restart_first: Duration::from_millis(20),
        restart_most: Duration::from_millis(100),
        stillborn: Duration::ZERO,
        ..Policy::default()
    }
}

fn start(broker: &Broker, folder: &Path, policy: Policy) {
    let supervisor = Supervisor::new(folder, policy, EventSender::none()).with_guard(BINARY.into());
    broker.start(&supervisor);
}

fn asking(broker: &Broker, text: &str) -> Rendered {
    let ix = broker.index("e").expect("it is known");
    let messages = [Message {
        role: Role::User,
        content: text.to_owned(),
    }];
    broker
        .engine(ix)
        .expect("it is known")
        .render(&Request::Chat(Chat {
            messages: &messages,
            schema: None,
            sampling: &Sampling::default(),
            stream: false,
        }))
}

/// Asks until there is an answer.
async fn answered(broker: Broker, text: &'static str) -> Result<(), Stop> {
    let ix = broker.index("e").expect("it is known");
    let rendered = asking(&broker, text);
    let mut faults = 0;
    loop {
        let lease = broker.acquire(ix, 0, faults, rendered.digest).await?;
        match lease.call(&rendered, 0).await {
            Ok(_) => return Ok(()),
            Err(error @ CallError::Refused { .. }) => panic!("{error}"),
            Err(_) => faults += 1,
        }
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let waited = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waited).await.expect(what);
}

fn kill_all(folder: &Path) {
    pids(folder).into_iter().for_each(kill);
}

#[test]
fn a_server_that_ended_while_nobody_wanted_it_is_started_for_the_row_that_comes_much_later() {
    block_on(async {
        let dir = tempfile::tempdir().expect("a folder");
        let wait = Duration::from_secs(1);
        let broker = with_servers(
            EngineSpec {
                engine_wait: wait,
                ..spec()
            },
            &[&[]],
        );
        start(&broker, dir.path(), policy());
        answered(broker.clone(), "first").await.expect("an answer");
        kill_all(dir.path());
        until("news of its end", || {
            broker
                .servers("e")
                .iter()
                .all(|it| it.state != ServerState::Ready)
        })
        .await;
        // Nobody waits: no patience is used up.
        tokio::time::sleep(2 * wait).await;
        let later = tokio::time::timeout(LIMIT, answered(broker.clone(), "second")).await;
        later.expect("in time").expect("it is started again");
        broker.shutdown().await;
    });
}

#[test]
fn two_rows_with_the_same_request_are_not_two_crashes() {
    block_on(async {
        let dir = tempfile::tempdir().expect("a folder");
        let broker = with_servers(spec(), &[&["--latency-ms", "3000"]]);
        start(&broker, dir.path(), policy());
        let in_flight = || broker.load().iter().map(|load| load.in_flight).sum::<usize>();
        let mut rows = tokio::task::JoinSet::new();
        for text in ["twin", "twin", "other"] {
            rows.spawn(answered(broker.clone(), text));
        }
        until("all in flight", || in_flight() == 3).await;
        // The requests have left when the server has them; it tells nobody, so they are given a moment.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = pids(dir.path());
        kill_all(dir.path());
        until("another server", || {
            let now = pids(dir.path());
            !now.is_empty() && now != before
        })
        .await;
        until("all in flight together again", || in_flight() == 3).await;
        while let Some(row) = rows.join_next().await {
            row.expect("nobody panics").expect("an answer");
        }
        broker.shutdown().await;
    });
}

#[test]
fn ends_of_a_warm_server_do_not_add_up_over_the_days() {
    block_on(async {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = WarmFolder::at(dir.path().join("warm"));
        folder.make().expect("a folder");
        let always = Launch {
            lazy: false,
            idle_timeout: Duration::MAX,
            ..Launch::default()
        };
        let kept = EngineSpec {
            launch: always,
            ..spec()
        };
        let keeper =
            with_servers(kept, &[&["--latency-ms", "700"]]).with_sharing(Sharing::Lends(folder.clone()));
        start(&keeper, folder.path(), policy());
        let user = with_servers(spec(), &[&[]]).with_sharing(Sharing::Uses(folder.clone()));
        let few = Policy {
            restart_first: Duration::from_secs(2),
            restart_most: Duration::from_secs(2),
            breaker_failures: 2,
            breaker_open: Duration::from_secs(3600),
            healthy_after: Duration::ZERO,
            ..policy()
        };
        until("a warm server", || !pids(folder.path()).is_empty()).await;
        start(&user, &dir.path().join("own"), few);
        for text in ["first", "second", "third"] {
            let row = tokio::spawn(answered(user.clone(), text));
            until("a request", || user.load().iter().any(|load| load.in_flight == 1)).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            kill_all(folder.path());
            let done = tokio::time::timeout(LIMIT, row)
                .await
                .expect("the breaker is closed");
            done.expect("nobody panics").expect("an answer");
        }
        user.shutdown().await;
        keeper.shutdown().await;
    });
}

#[test]
fn a_drain_ends_a_start_under_way() {
    block_on(async {
        let dir = tempfile::tempdir().expect("a folder");
        let always = Launch {
            lazy: false,
            ..Launch::default()
        };
        let kept = EngineSpec {
            launch: always,
            ..spec()
        };
        let broker = with_servers(kept, &[&[], &["--boot-delay-ms", "3000000"]]);
        start(&broker, dir.path(), policy());
        until("one server is there, the other starts", || {
            let servers = broker.servers("e");
            servers.iter().any(|it| it.state == ServerState::Ready)
                && servers.iter().any(|it| it.what.as_deref() == Some("starting"))
        })
        .await;
        let drained = tokio::time::timeout(LIMIT, broker.drain("e", Duration::from_secs(60)));
        assert!(drained.await.expect("it ends"), "nothing was in flight");
        assert_eq!(
            broker
                .servers("e")
                .iter()
                .map(|it| it.what.as_deref())
                .collect::<Vec<_>>(),
            [Some("drained"); 2]
        );
        assert!(pids(dir.path()).is_empty(), "the start's server is gone too");
        broker.shutdown().await;
    });
}
