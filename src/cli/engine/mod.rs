//! `chainette engine`: the servers that chainette starts itself.

mod provision;

use std::path::{Path, PathBuf};

use super::args::{EngineArgs, EngineCommand, PoolsArgs};
use super::{Exit, printer::Printer};
use crate::engine::provision::{Machine, Missing, Plan, plan_all};
use crate::plan::Report;
use crate::spec::{EngineSpec, Problems, Resources, Sources, load_engines, suggest};

/// Does what was asked for.
pub(super) fn engine(args: &EngineArgs, printer: Printer) -> Exit {
    match &args.command {
        EngineCommand::Provision(args) => provision::provision(args, printer),
    }
}

/// Plans the engines that are started here, each at its place in the list; what is missing is shown, all at once.
pub(super) fn planned(
    engines: &[EngineSpec],
    resources: &Resources,
    printer: Printer,
) -> Result<Vec<Option<Plan>>, Exit> {
    if !engines.iter().any(EngineSpec::is_launched) {
        return Ok(engines.iter().map(|_| None).collect());
    }
    plan_all(engines, resources, &Machine::look()).map_err(|missing| {
        printer.error(&list(&missing));
        Exit::Usage
    })
}

/// Everything that is missing, as people read it.
fn list(missing: &[Missing]) -> String {
    let lines: Vec<String> = missing
        .iter()
        .map(|missing| format!("error: {missing}"))
        .collect();
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
    Ok((specs, resources))
}

/// Where the state of engines is kept between commands.
fn state_folder() -> Result<PathBuf, String> {
    let base = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|base| base.is_absolute())
        .or_else(|| {
            let home = std::env::home_dir().filter(|home| home.is_absolute())?;
            Some(home.join(".local/state"))
        });
    base.map(|base| base.join(Path::new("chainette/engines")))
        .ok_or_else(|| {
            "there is no home folder to keep state in\n  set XDG_STATE_HOME to a folder".to_owned()
        })
}
