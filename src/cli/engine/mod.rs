//! `chainette engine`: the servers that chainette starts itself.

mod control;
mod keep;
mod logs;
pub(super) mod own;
mod pool;
mod provision;
mod reload;
mod servers;
pub(super) mod status;
mod stop;
mod up;

use std::ops::ControlFlow;

use indexmap::IndexMap;

use super::args::{DownArgs, EngineArgs, EngineCommand, PoolsArgs, UpArgs};
use super::{Exit, printer::Printer};
use crate::engine::SetupError;
use crate::engine::broker::{Broker, Budget, Sharing};
use crate::engine::provision::{Machine, Missing, Need, Plan, Telling, plan, plan_all, verify};
use crate::engine::warm::WarmFolder;
use crate::event::EventSender;
use crate::plan::Report;
use crate::spec::{EngineSpec, Problems, Resources, Sources, load_engines, suggest};

/// Does what was asked for.
pub(super) fn engine(args: &EngineArgs, printer: Printer) -> Exit {
    match &args.command {
        EngineCommand::Provision(args) => provision::provision(args, printer),
        EngineCommand::Up(args) => up::up(args, printer),
        EngineCommand::Status(args) => status::status(args, printer),
        EngineCommand::Drain(args) => stop::drain(args, printer),
        EngineCommand::Reload(args) => reload::reload(args, printer),
        EngineCommand::Down(args) => stop::down(args, printer),
        EngineCommand::Logs(args) => logs::logs(args, printer),
    }
}

/// The engines of a chain, planned.
#[derive(Default)]
pub(super) struct Planned {
    /// By engine; none for those that somebody else runs.
    plans: Vec<Option<Plan>>,
    /// What they may use, beside those that `engine up` keeps.
    budget: Budget,
    /// Pools that `engine up` keeps.
    warm: Vec<String>,
}

/// Plans the engines that are started here; what is missing is shown, all at once.
pub(super) fn planned(
    engines: &[EngineSpec],
    resources: &Resources,
    printer: Printer,
) -> Result<Planned, Exit> {
    if !engines.iter().any(EngineSpec::is_ours) {
        return Ok(Planned::default());
    }
    let machine = Machine::look();
    let plans = plan_all(engines, resources, &machine).map_err(|missing| {
        printer.error(&list(&missing));
        Exit::Usage
    })?;
    pinned(&plans, printer)?;
    Ok(Planned::new(plans, &machine, resources))
}

/// Compares the models that are here with their pins: a wrong one is told before anything is started or written.
fn pinned(plans: &[Option<Plan>], printer: Printer) -> Result<(), Exit> {
    let pinned = |plan: &&Plan| plan.spec().launch.sha256.is_some();
    let pinned: Vec<&Plan> = plans.iter().flatten().filter(pinned).collect();
    if pinned.is_empty() {
        return Ok(());
    }
    let facts = warm_folder(printer)?.facts();
    let mut wrong = Vec::new();
    for plan in pinned {
        let name = &plan.spec().name;
        let mut told = Telling::default();
        let checked = verify(plan, &facts, &mut |progress| {
            if let Some(line) = told.line(progress) {
                printer.notice(&format!("engine {name}: {line}"));
            }
            ControlFlow::Continue(())
        });
        if let Err(error) = checked {
            wrong.push(format!("error: engine `{name}`: {error}"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    printer.error(&wrong.join("\n"));
    Err(Exit::Usage)
}

impl Planned {
    fn new(plans: Vec<Option<Plan>>, machine: &Machine, resources: &Resources) -> Self {
        let notes = WarmFolder::locate()
            .ok()
            .filter(|folder| folder.is_ours().unwrap_or(false))
            .map_or_else(Vec::new, |folder| folder.notes());
        let mut budget = Budget::of(machine, resources);
        for note in &notes {
            budget.lessen(&note.need);
        }
        Self {
            plans,
            budget,
            warm: notes.into_iter().map(|note| note.pool).collect(),
        }
    }

    /// What can be planned of the engines, whatever else is missing.
    pub(super) fn as_far_as_known(engines: &[EngineSpec], resources: &Resources) -> Self {
        if engines.iter().filter(|spec| spec.is_ours()).count() < 2 {
            return Self::default();
        }
        let machine = Machine::look();
        let plans = engines.iter().map(|spec| match spec.is_ours() {
            true => plan(spec, resources, &machine).ok(),
            false => None,
        });
        Self::new(plans.collect(), &machine, resources)
    }

    /// What each engine takes with all its servers; none for those that are not ours to load, or whose model is still to be
    /// fetched.
    pub(super) fn needs(&self) -> Vec<Option<Need>> {
        let need = |plan: &Option<Plan>| {
            let plan = plan.as_ref()?;
            let spec = plan.spec();
            (!self.warm.contains(&spec.name)).then_some(())?;
            Some(plan.need()?.times(spec.launch.replicas))
        };
        self.plans.iter().map(need).collect()
    }

    /// What they may use together.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The engines of a run: warm ones where there are such, else its own.
    pub(super) fn broker(self, engines: &[EngineSpec], events: EventSender) -> Result<Broker, SetupError> {
        let Self { plans, budget, .. } = self;
        if plans.is_empty() {
            return Broker::new(engines, events);
        }
        let warm = WarmFolder::locate().map_err(|message| SetupError {
            engine: plans
                .iter()
                .flatten()
                .map(|plan| plan.spec().name.clone())
                .next()
                .unwrap_or_default(),
            message,
        })?;
        let broker = Broker::of(engines, &plans, budget, &warm.facts(), events)?;
        Ok(broker.with_sharing(Sharing::Uses(warm)))
    }
}

/// Everything that is missing, as people read it; what several engines miss is told once.
fn list(missing: &[Missing]) -> String {
    let mut grouped: IndexMap<(&str, &str), Vec<String>> = IndexMap::new();
    for Missing { engine, what, how } in missing {
        let engines = grouped.entry((what, how)).or_default();
        engines.push(format!("`{engine}`"));
    }
    let line = |((what, how), engines): (&(&str, &str), &Vec<String>)| {
        let noun = if engines.len() == 1 { "engine" } else { "engines" };
        format!("error: {noun} {}: {what}\n  {how}", engines.join(", "))
    };
    let lines: Vec<String> = grouped.iter().map(line).collect();
    lines.join("\n")
}

/// The engines of a file that were asked for, and what they may use together. Problems are shown.
fn declared(args: &PoolsArgs, printer: Printer) -> Result<(Vec<EngineSpec>, Resources), Exit> {
    let (mut sources, mut problems) = (Sources::default(), Problems::default());
    let loaded = load_engines(&args.file, &mut sources, &mut problems);
    let (declared, resources) = loaded.unwrap_or_default();
    let asked = |name: &str| args.pools.is_empty() || args.pools.iter().any(|pool| pool == name);
    let mut specs = Vec::new();
    for engine in declared.iter().filter(|engine| asked(&engine.name.value)) {
        for problem in &engine.unsupported {
            problems.push(problem.clone());
        }
        specs.extend(engine.spec.clone());
    }
    if problems.has_errors() {
        printer.problems(&Report::new(problems, sources));
        return Err(Exit::Usage);
    }
    let names = || declared.iter().map(|engine| engine.name.value.as_str());
    if let Some(unknown) = args.pools.iter().find(|pool| !names().any(|name| name == *pool)) {
        let hint = suggest(unknown, names()).unwrap_or_else(|| "it declares none".to_owned());
        let file = args.file.display();
        printer.error(&format!(
            "error: there is no engine `{unknown}` in {file}\n  {hint}"
        ));
        return Err(Exit::Usage);
    }
    if declared.is_empty() {
        let file = args.file.display();
        printer.error(&format!(
            "error: {file} declares no engines\n  they stand under `engines:` or `pools:`"
        ));
        return Err(Exit::Usage);
    }
    Ok((specs, resources))
}

/// `chainette warmup`.
pub(super) fn warmup(args: &UpArgs, printer: Printer) -> Exit {
    up::up(args, printer)
}

/// `chainette kill`.
pub(super) fn kill(args: &DownArgs, printer: Printer) -> Exit {
    stop::down(args, printer)
}

/// The folder of engines that outlive a run; what is wrong with it is shown.
fn warm_folder(printer: Printer) -> Result<WarmFolder, Exit> {
    let folder = WarmFolder::locate().and_then(|folder| match folder.is_ours() {
        Ok(_) => Ok(folder),
        Err(error) => Err(error.to_string()),
    });
    folder.map_err(|message| {
        printer.error(&format!("error: {message}"));
        Exit::Failed
    })
}

/// Cleans up what killed processes left; the labels of servers that were gone.
fn sweep(folder: &WarmFolder, printer: Printer) -> Vec<String> {
    match folder.sweep() {
        Ok(swept) => swept.into_iter().map(|swept| swept.label).collect(),
        Err(error) => {
            printer.warning(&format!("warning: {error}"));
            Vec::new()
        }
    }
}

/// The same, and says so.
fn swept(folder: &WarmFolder, printer: Printer) {
    for label in sweep(folder, printer) {
        printer.notice(&format!(
            "server {label}: whoever kept it was killed; it is cleaned up now"
        ));
    }
}

/// Columns as wide as their widest cell.
pub(super) fn columns(lines: &[Vec<String>]) -> String {
    let count = lines.first().map_or(0, Vec::len);
    let width = |at: usize| {
        let cells = lines.iter().filter_map(|line| line.get(at));
        cells
            .map(|cell| console::measure_text_width(cell))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for line in lines {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let gap = width.saturating_sub(console::measure_text_width(cell)) + 2;
            text += cell;
            text += &" ".repeat(gap);
        }
        out += text.trim_end();
        out.push('\n');
    }
    out
}
