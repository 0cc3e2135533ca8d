//! `chainette engine provision`.

use std::ops::ControlFlow;

use serde_json::{Value, json};

use super::super::args::ProvisionArgs;
use super::super::{Exit, printer::Printer};
use super::{columns, declared, list};
use crate::engine::provision::{
    Machine, Missing, Mode, Need, Plan, PreparedEngine, Telling, attach, bytes, plan_all, prepare,
};
use crate::engine::warm::WarmFolder;
use crate::spec::EngineSpec;

/// Fetches and verifies what engines need, unless it is to be a look only; shows how they would be started.
pub(super) fn provision(args: &ProvisionArgs, printer: Printer) -> Exit {
    let (specs, resources) = match declared(&args.engines, printer) {
        Ok(declared) => declared,
        Err(exit) => return exit,
    };
    let machine = Machine::look();
    let budget = machine.budget(&resources);
    let plans = match plan_all(&specs, &resources, &machine) {
        Ok(plans) => plans,
        Err(missing) => {
            printer.error(&list(&missing));
            if args.json {
                printer.result(&shown_json(&[], &missing, &budget));
            }
            return Exit::Usage;
        }
    };
    let prepared = match args.dry_run {
        true => Ok(previews(&specs, &plans)),
        false => prepare_all(&specs, &plans, printer),
    };
    let engines = match prepared {
        Ok(engines) => engines,
        Err(message) => {
            printer.error(&format!("error: {message}"));
            return Exit::Failed;
        }
    };
    let text = if args.json {
        shown_json(&engines, &[], &budget)
    } else if engines.is_empty() {
        format!("{} declares no engines\n", args.engines.file.display())
    } else {
        table(&engines, &budget)
    };
    printer.result(&text)
}

/// A server as it is shown.
struct Shown {
    engine: PreparedEngine,
    /// What is still to be downloaded.
    downloads: Option<String>,
}

fn previews(specs: &[EngineSpec], plans: &[Option<Plan>]) -> Vec<Shown> {
    let mut all = Vec::new();
    for (spec, plan) in specs.iter().zip(plans) {
        let shown = |plan: &Plan, replica| Shown {
            engine: plan.preview(replica),
            downloads: plan.downloads(),
        };
        match plan {
            Some(plan) => all.extend((0..spec.launch.replicas).map(|replica| shown(plan, replica))),
            None => all.push(external(spec)),
        }
    }
    all
}

fn external(spec: &EngineSpec) -> Shown {
    Shown {
        engine: attach(spec),
        downloads: None,
    }
}

fn prepare_all(specs: &[EngineSpec], plans: &[Option<Plan>], printer: Printer) -> Result<Vec<Shown>, String> {
    let state = WarmFolder::locate()?.facts();
    let mut all = Vec::new();
    for (spec, plan) in specs.iter().zip(plans) {
        let Some(plan) = plan else {
            all.push(external(spec));
            continue;
        };
        let mut told = Telling::default();
        for replica in 0..spec.launch.replicas {
            let prepared = prepare(plan, replica, &state, &mut |progress| {
                if let Some(line) = told.line(progress) {
                    printer.notice(&format!("{}: {line}", spec.name));
                }
                ControlFlow::Continue(())
            });
            all.push(Shown {
                engine: prepared.map_err(|error| format!("engine `{}`: {error}", spec.name))?,
                downloads: None,
            });
        }
    }
    Ok(all)
}

/// A table of the servers, the whole command lines below it, and what a person should know.
fn table(engines: &[Shown], budget: &Need) -> String {
    let head = ["engine", "backend", "model", "memory", "address", "slots"].map(str::to_owned);
    let mut lines = vec![head.to_vec()];
    lines.extend(engines.iter().map(Shown::cells));
    let mut out = columns(&lines);
    for shown in engines.iter().filter(|shown| shown.engine.binary.is_some()) {
        let engine = &shown.engine;
        let program = engine.binary.as_deref().unwrap_or("".as_ref());
        let mut words = vec![word(&program.to_string_lossy())];
        words.extend(arguments(shown).iter().map(|argument| word(argument)));
        let mask = engine.device_mask.as_ref();
        let mask = mask.map_or(String::new(), |mask| format!("CUDA_VISIBLE_DEVICES={mask} "));
        out += &format!("\n{}\n  {mask}{}\n", engine.label(), words.join(" "));
        for note in &engine.notes {
            out += &format!("  note: {note}\n");
        }
    }
    out += &format!("\nengines may use {}\n", memory(budget));
    out
}

impl Shown {
    fn cells(&self) -> Vec<String> {
        let engine = &self.engine;
        let known = engine.need != Need::default();
        vec![
            engine.label(),
            engine.backend.clone(),
            match &self.downloads {
                Some(_) => format!("{} (to download)", engine.model_id),
                None => engine.model_id.clone(),
            },
            match known {
                true => memory(&engine.need),
                false => "-".to_owned(),
            },
            match (&engine.endpoint, engine.port) {
                (Some(endpoint), _) => endpoint.clone(),
                (None, _) if engine.mode == Mode::Embedded => "this process".to_owned(),
                (None, 0) => format!("{}, a free port", engine.host),
                (None, port) => format!("{}:{port}", engine.host),
            },
            engine
                .slots
                .map_or_else(|| "-".to_owned(), |slots| slots.to_string()),
        ]
    }

    fn json(&self) -> Value {
        let engine = &self.engine;
        let names: Vec<&str> = engine.env.iter().map(|(name, _)| name.as_str()).collect();
        let keys: Vec<&str> = engine.secrets.iter().map(|(name, _)| name.as_str()).collect();
        let known = engine.need != Need::default();
        let vram: serde_json::Map<String, Value> = engine
            .need
            .vram
            .iter()
            .map(|(device, bytes)| (device.to_string(), json!(bytes)))
            .collect();
        json!({
            "engine": engine.engine,
            "replica": engine.replica,
            "backend": engine.backend,
            "mode": engine.mode,
            "program": engine.binary,
            "arguments": engine.binary.as_ref().map(|_| arguments(self)),
            "endpoint": engine.endpoint,
            "host": engine.binary.as_ref().map(|_| &engine.host),
            "port": Some(engine.port).filter(|port| *port > 0),
            "model": {"id": engine.model_id, "path": engine.model_path, "digest": engine.model_digest},
            "downloads": self.downloads,
            "device_mask": engine.device_mask,
            "env": names,
            "secret_env": keys,
            "slots": engine.slots,
            "need": known.then(|| json!({"ram": engine.need.ram, "vram": vram})),
            "spec_digest": Some(&engine.spec_digest).filter(|digest| !digest.is_empty()),
            "notes": engine.notes,
        })
    }
}

/// The command line after the program; what is not known yet has a name in capitals.
fn arguments(shown: &Shown) -> Vec<String> {
    let engine = &shown.engine;
    let mut arguments = engine.arguments();
    if engine.port == 0
        && let Some(at) = arguments.iter().position(|argument| argument == "--port")
        && let Some(port) = arguments.get_mut(at + 1)
    {
        *port = "PORT".to_owned();
    }
    if let Some(model) = &shown.downloads {
        let lead = match engine.backend.as_str() {
            "vllm" => "serve",
            "tgi" => "--model-id",
            _ => "--model",
        };
        arguments.splice(0..0, [lead.to_owned(), model.clone()]);
    }
    arguments
}

/// A word as a shell would want it.
fn word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=,@+%".contains(&b);
    match !text.is_empty() && text.bytes().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn memory(need: &Need) -> String {
    let mut parts = vec![format!("{} RAM", bytes(need.ram))];
    parts.extend(
        need.vram
            .iter()
            .map(|(device, size)| format!("{} of GPU {device}", bytes(*size))),
    );
    parts.join(", ")
}

fn shown_json(engines: &[Shown], missing: &[Missing], budget: &Need) -> String {
    let vram: serde_json::Map<String, Value> = budget
        .vram
        .iter()
        .map(|(device, bytes)| (device.to_string(), json!(bytes)))
        .collect();
    let missing: Vec<Value> = missing
        .iter()
        .map(|missing| json!({"engine": missing.engine, "what": missing.what, "how": missing.how}))
        .collect();
    let engines: Vec<Value> = engines.iter().map(Shown::json).collect();
    let all = json!({
        "engines": engines, "missing": missing, "budget": {"ram": budget.ram, "vram": vram},
    });
    format!("{all:#}\n")
}
