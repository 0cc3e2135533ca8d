//! `chainette engines`.

use std::collections::HashMap;

use futures::future::join_all;
use serde_json::{Value, json};

use super::args::{ChainArgs, EnginesArgs};
use super::engine::columns;
use super::engine::own::{Own, own};
use super::{Exit, compile, printer::Printer};
use crate::engine::client::probe::{Health, State, key_is_set, probe};
use crate::engine::provision::Machine;
use crate::plan::{NodeKind, Plan};
use crate::spec::{ChainInput, Concurrency, EngineDecl, EngineSpec, Problems, Resources, Sources, load};

/// Asks every declared engine for its state and shows them. Engines that do not answer are no error.
pub(crate) fn engines(args: &EnginesArgs, printer: Printer) -> Exit {
    let plan = match compile(&args.chain, printer) {
        Ok(chain) => chain.plan,
        Err(exit) => return exit,
    };
    let (declared, resources) = declared(&args.chain);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            printer.error(&format!("error: cannot start: {error}"));
            return Exit::Failed;
        }
    };
    let probes = declared.iter().map(|engine| async {
        match &engine.spec {
            Some(spec) if !spec.is_ours() => Some(probe(spec, args.timeout).await),
            _ => None,
        }
    });
    let health = runtime.block_on(join_all(probes));
    let users = users(&plan);
    let owned = owned(&declared, &resources);
    let rows: Vec<Row<'_>> = declared
        .iter()
        .zip(&health)
        .map(|(engine, health)| Row {
            engine,
            health: health.as_ref(),
            own: owned.get(engine.name.value.as_str()),
            users: users.get(engine.name.value.as_str()).map_or(&[], Vec::as_slice),
        })
        .collect();
    let text = if args.json {
        let engines: Vec<Value> = rows.iter().map(Row::json).collect();
        format!("{:#}\n", json!({"engines": engines}))
    } else if rows.is_empty() {
        "the chain declares no engines\n".to_owned()
    } else {
        table(&rows)
    };
    printer.result(&text)
}

/// Every engine of the chain and of the engines files, used or not.
fn declared(args: &ChainArgs) -> (Vec<EngineDecl>, Resources) {
    let input = ChainInput {
        path: args.chain.clone(),
        text: None,
        engines: args.engines.clone(),
        sets: args.sets.clone(),
    };
    // What is wrong with the chain has been told when it was compiled.
    let spec = load(&input, &mut Sources::default(), &mut Problems::default());
    spec.map(|spec| (spec.engines, spec.resources))
        .unwrap_or_default()
}

/// The states of engines that chainette starts, by name.
fn owned<'a>(declared: &'a [EngineDecl], resources: &Resources) -> HashMap<&'a str, Own> {
    let specs = declared.iter().filter_map(|engine| engine.spec.as_ref());
    let specs: Vec<&EngineSpec> = specs.filter(|spec| spec.is_ours()).collect();
    if specs.is_empty() {
        return HashMap::new();
    }
    let machine = Machine::look();
    let owned = specs
        .into_iter()
        .map(|spec| (spec.name.as_str(), own(spec, resources, &machine)));
    owned.collect()
}

/// The Steps of each engine.
fn users(plan: &Plan) -> HashMap<&str, Vec<&str>> {
    let mut users: HashMap<&str, Vec<&str>> = HashMap::new();
    for node in &plan.nodes {
        if let NodeKind::Step(step) = &node.kind
            && let Some(engine) = plan.engines.get(step.engine.0)
        {
            users.entry(&engine.name).or_default().push(&node.id);
        }
    }
    users
}

/// One engine.
struct Row<'a> {
    engine: &'a EngineDecl,
    /// None for an engine that this version does not serve.
    health: Option<&'a Health>,
    /// For one that chainette starts.
    own: Option<&'a Own>,
    users: &'a [&'a str],
}

impl Row<'_> {
    fn cells(&self) -> [String; 8] {
        let spec = self.engine.spec.as_ref();
        let of = |read: fn(&EngineSpec) -> String| spec.map_or_else(|| "-".to_owned(), read);
        let users = match self.users {
            [] => "-".to_owned(),
            users => users.join(", "),
        };
        [
            self.engine.name.value.clone(),
            of(|spec| spec.backend.as_str().to_owned()),
            of(|spec| spec.model.clone()),
            match self.own {
                None => of(EngineSpec::shown_endpoint),
                Some(own) if own.urls.is_empty() => "-".to_owned(),
                Some(own) => own.urls.join(", "),
            },
            of(|spec| match spec.concurrency {
                Concurrency::Auto => "auto".to_owned(),
                Concurrency::Fixed(n) => n.to_string(),
            }),
            of(|spec| match &spec.api_key_env {
                None => "-".to_owned(),
                Some(name) if key_is_set(name) => format!("{name}: set"),
                Some(name) => format!("{name}: not set"),
            }),
            users,
            self.state(),
        ]
    }

    /// The state with what is known beside it.
    fn state(&self) -> String {
        if let Some(own) = self.own {
            let reason = own.reason.iter().map(|reason| format!(": {reason}"));
            return own.state.to_owned() + &reason.collect::<String>();
        }
        let Some(health) = self.health else {
            let reason = self
                .unsupported()
                .map_or(String::new(), |reason| format!(": {reason}"));
            return format!("not supported{reason}");
        };
        let mut text = health.state.as_str().to_owned();
        if let Some(reason) = &health.reason {
            text += &format!(": {reason}");
        }
        if health.state == State::Ready {
            let facts = [
                health.version.clone(),
                health.slots.map(|n| format!("{n} slots")),
                health.context.map(|n| format!("{n} tokens per request")),
            ];
            let facts: Vec<String> = facts.into_iter().flatten().collect();
            if !facts.is_empty() {
                text += &format!(" ({})", facts.join(", "));
            }
        }
        text
    }

    /// Why this version does not serve the engine.
    fn unsupported(&self) -> Option<&str> {
        self.engine
            .unsupported
            .first()
            .map(|problem| problem.message.as_str())
    }

    fn json(&self) -> Value {
        let spec = self.engine.spec.as_ref();
        let key = spec.and_then(|spec| spec.api_key_env.as_deref());
        let mut row = json!({
            "name": self.engine.name.value,
            "backend": spec.map(|spec| spec.backend.as_str()),
            "model": spec.map(|spec| &spec.model),
            "endpoint": spec.filter(|spec| !spec.is_ours()).map(EngineSpec::shown_endpoint),
            "concurrency": spec.map(|spec| match spec.concurrency {
                Concurrency::Auto => json!("auto"),
                Concurrency::Fixed(n) => json!(n),
            }),
            "api_key_env": key,
            "api_key_set": key.map(key_is_set),
            "used_by": self.users,
        });
        let state = match (self.health, self.own) {
            (_, Some(own)) => json!({
                "state": own.state,
                "reason": own.reason,
                "urls": own.urls,
                "version": own.version,
                "slots": own.slots,
            }),
            (None, None) => json!({"state": "not supported", "reason": self.unsupported()}),
            (Some(health), None) => json!({
                "state": health.state.as_str(),
                "reason": health.reason,
                "version": health.version,
                "slots": health.slots,
                "context": health.context,
                "models": health.models,
            }),
        };
        if let (Value::Object(row), Value::Object(state)) = (&mut row, state) {
            row.extend(state);
        }
        row
    }
}

fn table(rows: &[Row<'_>]) -> String {
    let head = [
        "engine",
        "backend",
        "model",
        "endpoint",
        "concurrency",
        "key",
        "used by",
        "state",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| row.cells().to_vec()));
    columns(&lines)
}
