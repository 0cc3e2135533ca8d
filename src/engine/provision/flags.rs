//! The command line of a server: ours by default, the user's where they say otherwise.
//!
//! The same declaration on the same machine gives the same line, word for word.

mod llamacpp;
mod tgi;
mod vllm;

use super::abilities::Abilities;
use super::weights::Weights;
use crate::spec::{Backend, Concurrency, EngineSpec};
pub(super) use vllm::SHARE as VLLM_SHARE;

/// A flag that we know: its names, the first of which is its own, and how many words follow it.
pub(super) struct Known {
    names: &'static [&'static str],
    /// It stands alone.
    alone: bool,
    /// What it is about: of two flags about one thing the last one wins.
    about: &'static str,
}

/// A flag with one value.
pub(super) const fn valued(names: &'static [&'static str], about: &'static str) -> Known {
    Known {
        names,
        alone: false,
        about,
    }
}

/// A flag without a value.
pub(super) const fn switch(names: &'static [&'static str], about: &'static str) -> Known {
    Known {
        names,
        alone: true,
        about,
    }
}

/// What a backend's command line is like.
pub(super) struct Dialect {
    known: &'static [Known],
    /// `--a_b` is `--a-b`.
    underscores: bool,
}

/// What the flags are chosen by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given<'a> {
    /// The engine.
    pub(super) spec: &'a EngineSpec,
    /// Its model, as far as it is there.
    pub(super) weights: Option<&'a Weights>,
    /// GPUs that it may use.
    pub(super) gpus: usize,
    /// What the program knows; none: not asked.
    pub(super) abilities: Option<&'a Abilities>,
}

/// A command line, with what was taken out of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// The words after the address.
    pub(super) words: Vec<String>,
    /// `host` of the user's flags.
    pub(super) host: Option<String>,
    /// `port` of the user's flags.
    pub(super) port: Option<u16>,
    /// What each thing is set to, in the end.
    settled: Vec<(&'static str, Option<String>)>,
}

impl Line {
    /// What a thing is set to: `ctx`, `slots`, `gpu_layers`, `gpu_share`, `shards`.
    pub(super) fn number<T: std::str::FromStr>(&self, about: &str) -> Option<T> {
        self.value(about)?.parse().ok()
    }

    /// As [`Line::number`], as text.
    pub(super) fn value(&self, about: &str) -> Option<&str> {
        let found = self.settled.iter().find(|(name, _)| *name == about);
        found.and_then(|(_, value)| value.as_deref())
    }

    /// True when the user set it.
    fn has(&self, about: &str) -> bool {
        self.settled.iter().any(|(name, _)| *name == about)
    }

    /// A flag of ours, unless the user has one about the same.
    fn ours(&mut self, about: &'static str, words: &[&str]) {
        if self.has(about) {
            return;
        }
        let value = words.get(1).map(|value| (*value).to_owned());
        self.settled.push((about, value));
        self.words.extend(words.iter().map(|word| (*word).to_owned()));
    }
}

/// The command line of an engine.
pub(super) fn line(given: Given<'_>) -> Line {
    let flags = &given.spec.launch.flags;
    match given.spec.backend {
        Backend::LlamaCpp => ours(given, theirs(flags, &llamacpp::DIALECT), llamacpp::defaults),
        Backend::Vllm => ours(given, theirs(flags, &vllm::DIALECT), vllm::defaults),
        Backend::Tgi => ours(given, theirs(flags, &tgi::DIALECT), tgi::defaults),
        // Not started by us.
        Backend::OpenAi | Backend::Ollama | Backend::Embedded | Backend::Custom => Line::default(),
    }
}

/// Puts our flags before the user's.
fn ours(given: Given<'_>, theirs: Line, defaults: fn(Given<'_>, &mut Line)) -> Line {
    let mut line = Line {
        words: Vec::new(),
        ..theirs.clone()
    };
    defaults(given, &mut line);
    line.words.extend(theirs.words);
    line
}

/// The user's flags: known ones under their own names, each once, the last one; unknown ones as they are. The address is
/// taken out.
fn theirs(flags: &[String], dialect: &Dialect) -> Line {
    let mut line = Line::default();
    // Words that belong together; with a thing they are about, where that is known.
    let mut groups: Vec<(Option<&'static str>, Vec<String>)> = Vec::new();
    let mut words = flags.iter().peekable();
    while let Some(word) = words.next() {
        let (name, joined) = match word.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name, Some(value.to_owned())),
            _ => (word.as_str(), None),
        };
        let Some(known) = dialect.find(name) else {
            groups.push((None, vec![word.clone()]));
            continue;
        };
        let own = dialect.own_name(known, name);
        let value = match (known.alone, joined) {
            (true, None) => None,
            // `--flag=on` of a flag without a value: the server's to judge.
            (true, Some(_)) => {
                groups.push((None, vec![word.clone()]));
                continue;
            }
            (false, Some(value)) => Some(value),
            (false, None) => words.next_if(|next| is_value(next)).cloned(),
        };
        match known.about {
            "host" => line.host = value,
            "port" => match value.as_deref().map(str::parse) {
                Some(Ok(port)) => line.port = Some(port),
                // The server says what is wrong with it.
                _ => groups.push((None, [Some(own), value].into_iter().flatten().collect())),
            },
            about => {
                groups.retain(|(other, _)| *other != Some(about));
                line.settled.retain(|(other, _)| *other != about);
                line.settled.push((about, value.clone()));
                groups.push((Some(about), [Some(own), value].into_iter().flatten().collect()));
            }
        }
    }
    line.words = groups.into_iter().flat_map(|(_, words)| words).collect();
    line
}

/// True for a word that is the value of the flag before it, and no flag: `-1` is one.
fn is_value(word: &str) -> bool {
    let name = word.trim_start_matches('-');
    !word.starts_with('-') || !name.starts_with(|c: char| c.is_ascii_alphabetic())
}

impl Dialect {
    fn find(&self, name: &str) -> Option<&'static Known> {
        let name = self.spelled(name);
        self.known
            .iter()
            .find(|known| known.names.contains(&name.as_str()))
    }

    /// The flag under its own name; a switch that can be off keeps the name it has.
    fn own_name(&self, known: &Known, name: &str) -> String {
        let own = known.names.first().copied().unwrap_or_default();
        if known.alone {
            self.spelled(name)
        } else {
            own.to_owned()
        }
    }

    fn spelled(&self, name: &str) -> String {
        if self.underscores && name.starts_with("--") {
            name.replace('_', "-")
        } else {
            name.to_owned()
        }
    }
}

/// Requests at the same time that the engine is declared for: one, so many, or as the server likes.
fn wanted_slots(spec: &EngineSpec) -> Option<usize> {
    match spec.concurrency {
        _ if spec.launch.deterministic => Some(1),
        Concurrency::Fixed(slots) => Some(slots),
        Concurrency::Auto => None,
    }
}
