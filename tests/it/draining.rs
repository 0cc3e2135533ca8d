//! Draining the servers of a run, in its own process: all of an engine or none, and never under a request.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chainette::engine::broker::{Broker, Budget, MemoryLedger, ServerState};
use chainette::engine::provision::Need;
use chainette::engine::supervise::{Policy, Supervisor};
use chainette::event::EventSender;
use chainette::spec::{Backend, Concurrency, EngineSpec, Launch};

use crate::engine::{block_on, hello};
use crate::harness::BINARY;
use crate::served::prepared;

/// Two servers of an engine `e`, ready.
async fn two(folder: &Path, latency_ms: u32) -> Broker {
    let spec = EngineSpec {
        concurrency: Concurrency::Fixed(1),
        launch: Launch {
            lazy: false,
            ..Launch::default()
        },
        ..EngineSpec::new("e", Backend::LlamaCpp, "e")
    };
    let servers = (0..2).map(|at| -> Arc<chainette::engine::broker::Prepare> {
        let latency = latency_ms.to_string();
        Arc::new(move |_| Ok(prepared("e", at, &["--latency-ms", &latency], Need::default())))
    });
    let broker = Broker::empty(EventSender::none())
        .with_memory(MemoryLedger::new(Budget::default()))
        .with_servers(&spec, servers.collect())
        .expect("a good declaration");
    let policy = Policy::default();
    let supervisor =
        Supervisor::new(folder.join("engines"), policy, EventSender::none()).with_guard(BINARY.into());
    broker.start(&supervisor);
    while !all(&broker, ServerState::Ready) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    broker
}

fn all(broker: &Broker, state: ServerState) -> bool {
    let servers = broker.servers("e");
    servers.len() == 2 && servers.iter().all(|server| server.state == state)
}

/// Handoffs of a folder.
fn handoffs(folder: &Path) -> usize {
    let files = std::fs::read_dir(folder.join("engines"))
        .into_iter()
        .flatten()
        .flatten();
    files
        .filter(|file| file.path().extension().is_some_and(|kind| kind == "json"))
        .count()
}

#[test]
fn a_drain_waits_for_what_is_in_flight_and_stops_all() {
    block_on(async {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let broker = two(dir.path(), 1000).await;
        let ix = broker.index("e").expect("it is known");
        let rendered = hello(broker.engine(ix).expect("it is known").as_ref());
        let lease = broker
            .acquire(ix, 0, 0, rendered.digest)
            .await
            .expect("both are ready");
        let asking = async {
            let reply = lease.call(&rendered, 0).await;
            drop(lease);
            reply
        };
        let (reply, drained) = tokio::join!(asking, broker.drain("e", Duration::from_secs(100)));
        assert!(reply.is_ok(), "{reply:?}");
        assert!(drained);
        assert_eq!(handoffs(dir.path()), 0, "nothing is left of them");
        broker.shutdown().await;
    });
}

#[test]
fn a_drain_past_its_deadline_lets_all_serve_on() {
    block_on(async {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let broker = two(dir.path(), 0).await;
        let ix = broker.index("e").expect("it is known");
        let rendered = hello(broker.engine(ix).expect("it is known").as_ref());
        let lease = broker
            .acquire(ix, 0, 0, rendered.digest)
            .await
            .expect("both are ready");
        assert!(
            !broker.drain("e", Duration::from_millis(200)).await,
            "a lease is out"
        );
        assert!(all(&broker, ServerState::Ready), "{:?}", broker.servers("e"));
        assert_eq!(handoffs(dir.path()), 2);
        drop(lease);
        // They take requests as before, both of them.
        for row in 0..4 {
            let lease = broker
                .acquire(ix, row, 0, rendered.digest)
                .await
                .expect("it serves");
            assert!(lease.call(&rendered, 0).await.is_ok());
        }
        assert!(broker.drain("e", Duration::from_secs(100)).await);
        broker.shutdown().await;
        assert_eq!(handoffs(dir.path()), 0);
    });
}

#[test]
fn the_end_does_not_wait_for_a_drain() {
    block_on(async {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let broker = two(dir.path(), 0).await;
        let ix = broker.index("e").expect("it is known");
        let rendered = hello(broker.engine(ix).expect("it is known").as_ref());
        let _lease = broker
            .acquire(ix, 0, 0, rendered.digest)
            .await
            .expect("both are ready");
        let drain = broker.drain("e", Duration::from_secs(3600));
        let end = async {
            while !all(&broker, ServerState::Draining) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            broker.shutdown().await;
        };
        tokio::join!(drain, end);
        assert_eq!(handoffs(dir.path()), 0);
    });
}
