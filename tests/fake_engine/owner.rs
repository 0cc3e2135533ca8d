//! A process that has a server of its own, through the library, for tests that kill it.
//!
//! `--own {"folder", "guard", "prepared", "then"}` prints the handoff on stdout once the server is ready; `then` is
//! `wait`, `panic`, `exit`, `abort` or `return`.

use std::path::PathBuf;

use chainette::engine::provision::PreparedEngine;
use chainette::engine::supervise::{Policy, Supervisor};
use chainette::event::EventSender;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub fn own(order: &str) -> ! {
    let order: Value = serde_json::from_str(order).expect("JSON");
    let path = |name: &str| PathBuf::from(order[name].as_str().expect("a path"));
    let prepared: PreparedEngine =
        serde_json::from_value(order["prepared"].clone()).expect("a prepared engine");
    let supervisor =
        Supervisor::new(path("folder"), Policy::default(), EventSender::none()).with_guard(path("guard"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime can be built");
    let then = order["then"].as_str().expect("what then").to_owned();
    runtime.block_on(async move {
        let ready = supervisor.start(prepared, &CancellationToken::new()).await;
        let ready = ready.expect("the server starts");
        println!("{}", serde_json::to_string(ready.handoff()).expect("JSON"));
        match then.as_str() {
            "panic" => panic!("as it was told"),
            "exit" => std::process::exit(0),
            "abort" => std::process::abort(),
            "return" => drop(ready),
            _ => std::future::pending().await,
        }
    });
    std::process::exit(0)
}
