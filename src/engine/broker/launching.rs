//! From a chain's engines to a broker: those that are ours to run are planned, and their memory is one budget.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Broker, Budget, MemoryLedger, Prepare};
use crate::engine::SetupError;
use crate::engine::provision::{self, Machine, Missing, Progress, bytes};
use crate::engine::warm::WarmFolder;
use crate::event::EventSender;
use crate::spec::{EngineSpec, Resources};

/// Between two words about a preparation that goes on.
const NEWS: Duration = Duration::from_secs(5);

impl Broker {
    /// The engines of a chain, in its order: those with an `endpoint` are attached to, the others started by us when
    /// [`Broker::start`] was called and a row needs them. `state` is a folder for what is found out about models' files.
    ///
    /// # Errors
    /// As for [`Broker::new`].
    pub fn of(
        specs: &[EngineSpec],
        plans: &[Option<provision::Plan>],
        budget: Budget,
        state: &Path,
        events: EventSender,
    ) -> Result<Self, SetupError> {
        let mut broker = Self::empty(events).with_memory(MemoryLedger::new(budget));
        for (at, spec) in specs.iter().enumerate() {
            broker = match plans.get(at).and_then(Option::as_ref) {
                None => broker.with_spec(spec)?,
                Some(plan) => {
                    let servers = (0..spec.launch.replicas).map(|replica| preparation(plan, replica, state));
                    broker.with_servers(spec, servers.collect())?
                }
            };
        }
        Ok(broker)
    }

    /// As [`Broker::of`], with plans made on the spot.
    ///
    /// # Errors
    /// Everything that is missing for engines of ours, else as for [`Broker::new`].
    pub fn planned(
        specs: &[EngineSpec],
        resources: &Resources,
        events: EventSender,
    ) -> Result<Self, SetupError> {
        if !specs.iter().any(EngineSpec::is_launched) {
            return Self::of(specs, &[], Budget::default(), Path::new(""), events);
        }
        let machine = Machine::look();
        let plans = provision::plan_all(specs, resources, &machine).map_err(|missing| setup(&missing))?;
        let budget = Budget::of(&machine, resources);
        Self::of(specs, &plans, budget, warm()?.path(), events)
    }
}

impl Budget {
    /// What engines may use of a machine.
    pub fn of(machine: &Machine, resources: &Resources) -> Self {
        let all = machine.budget(resources);
        Self {
            ram: all.ram,
            vram: all.vram.into_iter().collect(),
        }
    }
}

/// Where `engine up` keeps its engines, and what was found out about models' files stands.
fn warm() -> Result<WarmFolder, SetupError> {
    WarmFolder::locate().map_err(|message| SetupError {
        engine: String::new(),
        message,
    })
}

/// Everything that is missing, as one error.
fn setup(missing: &[Missing]) -> SetupError {
    let lines: Vec<String> = missing
        .iter()
        .map(|one| format!("{}\n  {}", one.what, one.how))
        .collect();
    SetupError {
        engine: missing.first().map(|one| one.engine.clone()).unwrap_or_default(),
        message: lines.join("\n"),
    }
}

/// The preparation of one replica, told in a few words now and then.
fn preparation(plan: &provision::Plan, replica: u32, state: &Path) -> Arc<Prepare> {
    let (plan, state): (_, PathBuf) = (plan.clone(), state.to_owned());
    Arc::new(move |tell| {
        let last: Mutex<Option<(Instant, String)>> = Mutex::new(None);
        let mut hear = |progress: Progress<'_>| -> ControlFlow<()> {
            let (what, how_far) = words(&progress);
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            let old = last
                .as_ref()
                .is_some_and(|(at, told)| *told == what && at.elapsed() < NEWS);
            if old {
                return tell("");
            }
            *last = Some((Instant::now(), what.clone()));
            tell(&format!("{what}{how_far}"))
        };
        provision::prepare(&plan, replica, &state, &mut hear).map_err(|error| error.to_string())
    })
}

/// What is done, and how far it is.
fn words(progress: &Progress<'_>) -> (String, String) {
    let share = |done: u64, total: u64| match total {
        0 => format!(", {} so far", bytes(done)),
        total => format!(", {} of {}", bytes(done), bytes(total)),
    };
    match progress {
        Progress::Downloading { file, done, total } => (format!("downloading {file}"), share(*done, *total)),
        Progress::Retrying { file, why } => (format!("downloading {file} again: {why}"), String::new()),
        Progress::Waiting { file } => (
            format!("waiting for another process that downloads {file}"),
            String::new(),
        ),
        Progress::Verifying { file, done, total } => {
            (format!("verifying {}", file.display()), share(*done, *total))
        }
    }
}
