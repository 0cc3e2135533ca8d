//! The servers of one pool, as a file declares them.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::pool::Trouble;
use crate::engine::SetupError;
use crate::engine::broker::{Broker, Budget, MemoryLedger, preparation};
use crate::engine::provision::{Machine, Need, Plan, PreparedEngine, Telling, bytes, plan, prepare};
use crate::engine::warm::{Note, WarmFolder};
use crate::event::{Event, EventSender};
use crate::plan::{Report, Style};
use crate::spec::{EngineSpec, Launch, Problems, Resources, Sources, load_engines};

/// Servers that can be started: the declaration, and what comes of it on this machine.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    /// The file, absolute.
    file: PathBuf,
    plan: Plan,
    /// One of them as it was prepared; the others differ in their address.
    first: PreparedEngine,
    /// Where facts about files are kept.
    facts: PathBuf,
}

impl Declared {
    /// Reads the declaration of a pool, and prepares it: what must be fetched is fetched. Blocks as long as that takes.
    ///
    /// # Errors
    /// Whatever is wrong or missing, with what to do about it.
    pub(super) fn read(
        file: &Path,
        pool: &str,
        folder: &WarmFolder,
        events: &EventSender,
    ) -> Result<Self, Trouble> {
        let (declared, budget) = Self::prepared(file, pool, folder, events)?;
        declared.check_room(&budget, folder)?;
        Ok(declared)
    }

    /// The same, whether or not there is room for it; and what there is in all.
    fn prepared(
        file: &Path,
        pool: &str,
        folder: &WarmFolder,
        events: &EventSender,
    ) -> Result<(Self, Need), Trouble> {
        let (spec, resources) = declaration(file, pool)?;
        let missing = |missing: Vec<crate::engine::provision::Missing>| {
            let lines: Vec<String> = missing.iter().map(ToString::to_string).collect();
            Trouble::new(lines.join("\n"))
        };
        let machine = Machine::look();
        let plan = plan(&spec, &resources, &machine).map_err(missing)?;
        let (facts, told) = (folder.facts(), RefCell::new(Telling::default()));
        let first = prepare(&plan, 0, &facts, &mut |progress| {
            if let Some(reason) = told.borrow_mut().line(progress) {
                events.send(Event::EngineStarting {
                    engine: spec.name.clone(),
                    replica: 0,
                    reason,
                });
            }
            ControlFlow::Continue(())
        });
        let first = first.map_err(|error| Trouble::new(format!("engine `{pool}`: {error}")))?;
        let declared = Self {
            file: file.to_owned(),
            plan,
            first,
            facts,
        };
        Ok((declared, machine.budget(&resources)))
    }

    /// The digest of the pool that a file declares.
    ///
    /// # Errors
    /// As [`Declared::read`].
    pub(super) fn digest_of(file: &Path, pool: &str, folder: &WarmFolder) -> Result<String, Trouble> {
        let (declared, _) = Self::prepared(file, pool, folder, &EventSender::none())?;
        Ok(declared.first.spec_digest)
    }

    /// Its digest.
    pub(super) fn digest(&self) -> &str {
        &self.first.spec_digest
    }

    /// What all its servers take together.
    fn need(&self) -> Need {
        self.first.need.times(self.replicas())
    }

    fn replicas(&self) -> u32 {
        self.plan.spec().launch.replicas
    }

    /// Puts it into a pool's note.
    pub(super) fn describe(&self, note: &mut Note) {
        self.digest().clone_into(&mut note.spec_digest);
        note.replicas = self.replicas();
        note.file.clone_from(&self.file);
        note.need = self.need();
    }

    /// Whether it fits beside the other pools that are up.
    fn check_room(&self, budget: &Need, folder: &WarmFolder) -> Result<(), Trouble> {
        let own = self.need();
        let name = &self.plan.spec().name;
        let others: Vec<Note> = folder
            .notes()
            .into_iter()
            .filter(|note| note.pool != *name)
            .collect();
        let needs = others.iter().map(|note| &note.need);
        if budget_of(budget).holds(needs.chain([&own])) {
            return Ok(());
        }
        let beside = match others.as_slice() {
            [] => String::new(),
            others => {
                let names: Vec<String> = others.iter().map(|note| format!("`{}`", note.pool)).collect();
                format!(" beside {}", names.join(", "))
            }
        };
        let advice = match others.is_empty() {
            true => "lower `replicas`, `context` or `concurrency`, or raise `resources`",
            false => "stop one of those with `chainette engine down --pool ID`, or raise `resources`",
        };
        Err(Trouble::new(format!(
            "engine `{name}` does not fit into the memory{beside}: it needs {}, and engines may use {} together\n  {advice}",
            shown(&own),
            shown(budget),
        )))
    }

    /// Its servers, none of them started. All are there from the first moment, and never idle.
    pub(super) fn broker(&self, events: EventSender) -> Result<Broker, SetupError> {
        let spec = self.plan.spec();
        let kept = EngineSpec {
            launch: Launch {
                lazy: false,
                idle_timeout: Duration::MAX,
                ..spec.launch.clone()
            },
            ..spec.clone()
        };
        // Whether there is room was found out before.
        let ledger = MemoryLedger::new(budget_of(&self.need()));
        let servers = (0..self.replicas()).map(|replica| preparation(&self.plan, replica, &self.facts));
        Broker::empty(events)
            .with_memory(ledger)
            .with_servers(&kept, servers.collect())
    }
}

fn budget_of(need: &Need) -> Budget {
    Budget {
        ram: need.ram,
        vram: need.vram.iter().copied().collect(),
    }
}

/// Memory as people read it.
pub(super) fn shown(need: &Need) -> String {
    let mut parts = vec![bytes(need.ram)];
    parts.extend(
        need.vram
            .iter()
            .map(|(device, size)| format!("{} of GPU {device}", bytes(*size))),
    );
    parts.join(", ")
}

/// A pool as its file declares it.
fn declaration(file: &Path, pool: &str) -> Result<(EngineSpec, Resources), Trouble> {
    let (mut sources, mut problems) = (Sources::default(), Problems::default());
    let loaded = load_engines(file, &mut sources, &mut problems);
    if problems.has_errors() {
        let report = Report::new(problems, sources).render(Style::Plain);
        return Err(Trouble::new(report.trim_end()));
    }
    let (engines, resources) = loaded.unwrap_or_default();
    let found = engines.into_iter().find(|engine| engine.name.value == pool);
    let spec = found
        .and_then(|engine| engine.spec)
        .filter(EngineSpec::is_launched);
    let spec = spec.ok_or_else(|| {
        Trouble::new(format!(
            "{} declares no engine `{pool}` that chainette starts",
            file.display()
        ))
    })?;
    Ok((spec, resources))
}
