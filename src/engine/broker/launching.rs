//! From a chain's engines to a broker: those that are ours to run are planned, and their memory is one budget.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::stage::{self, Stage};
use super::{Broker, Budget, MemoryLedger, Prepare};
use crate::engine::SetupError;
use crate::engine::provision::{self, Machine, Missing, Need, Progress, Telling};
use crate::engine::warm::WarmFolder;
use crate::event::EventSender;
use crate::spec::{EngineSpec, Resources};

impl Broker {
    /// The engines of a chain, in its order: those with an `endpoint` are attached to, the others started by us when
    /// [`Broker::start`] was called and a row needs them. `facts` is a folder for what is found out about models' files.
    ///
    /// # Errors
    /// As for [`Broker::new`].
    pub fn of(
        specs: &[EngineSpec],
        plans: &[Option<provision::Plan>],
        budget: Budget,
        facts: &Path,
        events: EventSender,
    ) -> Result<Self, SetupError> {
        let mut broker = Self::empty(events).with_memory(MemoryLedger::new(budget));
        for (at, spec) in specs.iter().enumerate() {
            broker = match plans.get(at).and_then(Option::as_ref) {
                None => broker.with_spec(spec)?,
                #[cfg(feature = "embedded")]
                Some(plan) if spec.is_embedded() => broker.with_model(spec, &preparation(plan, 0, facts)),
                Some(plan) => {
                    let servers = (0..spec.launch.replicas).map(|replica| preparation(plan, replica, facts));
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
        if !specs.iter().any(EngineSpec::is_ours) {
            return Self::of(specs, &[], Budget::default(), Path::new(""), events);
        }
        let machine = Machine::look();
        let plans = provision::plan_all(specs, resources, &machine).map_err(|missing| setup(&missing))?;
        let budget = Budget::of(&machine, resources);
        let need = |plan: &Option<provision::Plan>| {
            let plan = plan.as_ref()?;
            Some(plan.need()?.times(plan.spec().launch.replicas))
        };
        let needs: Vec<Option<Need>> = plans.iter().map(need).collect();
        let sets = stage::sets(&needs, &budget);
        let stage = (sets.len() > 1).then(|| Arc::new(Stage::new(sets)));
        let broker = Self::of(specs, &plans, budget, &warm()?.facts(), events)?;
        Ok(broker.with_stage(stage))
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

/// The preparation of one replica, told in a few words now and then. `facts` is a folder for what is found out about
/// models' files.
pub fn preparation(plan: &provision::Plan, replica: u32, facts: &Path) -> Arc<Prepare> {
    let (plan, facts): (_, PathBuf) = (plan.clone(), facts.to_owned());
    Arc::new(move |tell| {
        let mut told = Telling::default();
        let mut hear = |progress: Progress<'_>| tell(&told.line(progress).unwrap_or_default());
        provision::prepare(&plan, replica, &facts, &mut hear).map_err(|error| error.to_string())
    })
}
