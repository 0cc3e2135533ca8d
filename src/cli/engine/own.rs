//! How an engine is that chainette starts: up, or what a run would do.

use std::ops::ControlFlow;

use super::status::{Row, rows};
use crate::engine::provision::{Machine, plan, prepare};
use crate::engine::warm::WarmFolder;
use crate::spec::{EngineSpec, Resources};

/// The state of an engine that chainette starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Own {
    /// `ready`, `starting`, `draining`, `failed`, `not running` or `missing`.
    pub(in crate::cli) state: &'static str,
    /// What a person should know about that.
    pub(in crate::cli) reason: Option<String>,
    /// Where its servers are.
    pub(in crate::cli) urls: Vec<String>,
    /// Requests that each works on at the same time.
    pub(in crate::cli) slots: Option<usize>,
    /// What they say of themselves.
    pub(in crate::cli) version: Option<String>,
}

impl Own {
    fn new(state: &'static str, reason: impl Into<String>) -> Self {
        Self {
            state,
            reason: Some(reason.into()),
            urls: Vec::new(),
            slots: None,
            version: None,
        }
    }
}

/// Looks for what `engine up` keeps of it, and for what is missing. Nothing is fetched or started.
pub(in crate::cli) fn own(spec: &EngineSpec, resources: &Resources, machine: &Machine) -> Own {
    let plan = match plan(spec, resources, machine) {
        Ok(plan) => plan,
        Err(missing) => {
            let all: Vec<String> = missing
                .iter()
                .map(|it| format!("{}; {}", it.what, it.how))
                .collect();
            return Own::new("missing", all.join("; "));
        }
    };
    if let Some(model) = plan.downloads() {
        return Own::new("not running", format!("a run fetches {model} and starts it"));
    }
    if spec.is_embedded() {
        return Own::new("ready", "a run loads it into its own process");
    }
    let idle = || Own::new("not running", "a run starts it");
    let folder = WarmFolder::locate()
        .ok()
        .filter(|folder| folder.is_ours().unwrap_or(false));
    let Some((folder, notes)) = folder.map(|folder| (folder.clone(), folder.notes())) else {
        return idle();
    };
    if notes.is_empty() {
        return idle();
    }
    let prepared = prepare(&plan, 0, &folder.facts(), &mut |_| ControlFlow::Continue(()));
    let Ok(prepared) = prepared else { return idle() };
    let Some(note) = notes.iter().find(|note| note.spec_digest == prepared.spec_digest) else {
        return match notes.iter().any(|note| note.pool == spec.name) {
            true => Own::new(
                "not running",
                "a run starts its own; the one of this name that `engine up` keeps has other settings",
            ),
            false => idle(),
        };
    };
    let rows = rows(&folder, Some(std::slice::from_ref(&note.pool)));
    let worst = ["failed", "draining", "starting"].into_iter();
    let worst = worst
        .filter_map(|state| rows.iter().find(|row| row.state == state))
        .next();
    let kept = "kept by `engine up`";
    let handoffs = || rows.iter().filter_map(|row| row.handoff.as_ref());
    Own {
        state: worst.map_or("ready", |row| row.state),
        reason: Some(match worst {
            Some(Row { what: Some(what), .. }) => format!("{what}, {kept}"),
            _ => kept.to_owned(),
        }),
        urls: handoffs().map(|it| it.url.clone()).collect(),
        slots: handoffs().find_map(|it| it.slots),
        version: handoffs().find_map(|it| it.engine_version.clone()),
    }
}
