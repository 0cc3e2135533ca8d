//! What can be wrong with a chain, and where: problems are collected, never returned one by one.

use std::path::PathBuf;

use super::SourceFile;

/// The kinds of problem, each with a stable name that `chainette inspect` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// A file cannot be read.
    File,
    /// Not YAML, or a key stands twice.
    YamlSyntax,
    /// A key that means nothing here.
    UnknownKey,
    /// A key that must be there.
    MissingKey,
    /// A value of the wrong type.
    WrongType,
    /// A value of the right type that is not allowed.
    BadValue,
    /// A Step names an engine that nobody declared.
    UnknownEngine,
    /// One engine name is declared twice.
    EngineClash,
    /// A model that nobody declared.
    UnknownModel,
    /// A name outside `[a-z][a-z0-9_]*`, or longer than 64.
    BadName,
    /// A name that stands twice.
    DuplicateId,
    /// A name that means something else.
    ReservedName,
    /// A template reads what does not exist.
    UndefinedName,
    /// A template reads what exists, but not here.
    NotVisible,
    /// A template or `when` that does not parse.
    TemplateSyntax,
    /// A jq program that does not compile.
    JqSyntax,
    /// A model that is no valid shorthand and no valid JSON Schema.
    BadModel,
    /// A `--set` that does not fit `vars`.
    BadSet,
    /// Documented, but not served by this version.
    Unsupported,
    /// A closure that nobody registered.
    UnknownClosure,
    /// A name that can be null is read without a guard (a warning).
    UnguardedNull,
}

impl Code {
    /// Every code, in the order of their documentation.
    pub const ALL: [Self; 21] = [
        Self::File,
        Self::YamlSyntax,
        Self::UnknownKey,
        Self::MissingKey,
        Self::WrongType,
        Self::BadValue,
        Self::UnknownEngine,
        Self::EngineClash,
        Self::UnknownModel,
        Self::BadName,
        Self::DuplicateId,
        Self::ReservedName,
        Self::UndefinedName,
        Self::NotVisible,
        Self::TemplateSyntax,
        Self::JqSyntax,
        Self::BadModel,
        Self::BadSet,
        Self::Unsupported,
        Self::UnknownClosure,
        Self::UnguardedNull,
    ];

    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::YamlSyntax => "yaml_syntax",
            Self::UnknownKey => "unknown_key",
            Self::MissingKey => "missing_key",
            Self::WrongType => "wrong_type",
            Self::BadValue => "bad_value",
            Self::UnknownEngine => "unknown_engine",
            Self::EngineClash => "engine_clash",
            Self::UnknownModel => "unknown_model",
            Self::BadName => "bad_name",
            Self::DuplicateId => "duplicate_id",
            Self::ReservedName => "reserved_name",
            Self::UndefinedName => "undefined_name",
            Self::NotVisible => "not_visible",
            Self::TemplateSyntax => "template_syntax",
            Self::JqSyntax => "jq_syntax",
            Self::BadModel => "bad_model",
            Self::BadSet => "bad_set",
            Self::Unsupported => "unsupported",
            Self::UnknownClosure => "unknown_closure",
            Self::UnguardedNull => "unguarded_null",
        }
    }

    /// True for what does not keep the chain from running.
    pub fn is_warning(self) -> bool {
        self == Self::UnguardedNull
    }
}

/// A byte range in one of the sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Which source (see [`Sources`]).
    pub file: usize,
    /// First byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
}

impl Span {
    /// The range `from..to`, counted from this span's start.
    pub fn within(self, from: usize, to: usize) -> Self {
        Self {
            file: self.file,
            start: self.start + from,
            end: self.start + to,
        }
    }
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub code: Code,
    /// What is wrong, one lowercase sentence.
    pub message: String,
    /// Where.
    pub span: Option<Span>,
    /// What to do about it.
    pub help: Option<String>,
}

/// Everything that is wrong with a chain.
#[derive(Clone, Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Notes a problem; the reference returned takes a help text.
    pub fn add(&mut self, code: Code, span: Span, message: impl Into<String>) -> ProblemRef<'_> {
        self.push(Problem {
            code,
            message: message.into(),
            span: Some(span),
            help: None,
        })
    }

    /// Notes a problem that stands nowhere in a source.
    pub fn add_unplaced(&mut self, code: Code, message: impl Into<String>) -> ProblemRef<'_> {
        self.push(Problem {
            code,
            message: message.into(),
            span: None,
            help: None,
        })
    }

    /// Notes a finished problem.
    pub fn push(&mut self, problem: Problem) -> ProblemRef<'_> {
        // The same reference made twice (an anchor, a prompt read twice) is one problem.
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
        ProblemRef(self)
    }

    /// The problem noted last.
    pub fn last(&mut self) -> ProblemRef<'_> {
        ProblemRef(self)
    }

    /// True when something keeps the chain from running.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|p| !p.code.is_warning())
    }

    /// The problems in the order of their places.
    pub fn into_sorted(mut self) -> Vec<Problem> {
        self.0.sort_by_key(|p| p.span);
        self.0
    }
}

/// The problem just added.
#[derive(Debug)]
pub struct ProblemRef<'a>(&'a mut Problems);

impl ProblemRef<'_> {
    /// Says what to do about it.
    pub fn help(self, help: impl Into<String>) {
        if let Some(last) = self.0.0.last_mut() {
            last.help = Some(help.into());
        }
    }

    /// Says what to do about it, when something is known.
    pub fn maybe_help(self, help: Option<String>) {
        if let Some(help) = help {
            self.help(help);
        }
    }
}

/// The files that a chain was read from.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<SourceFile>);

impl Sources {
    /// Adds a source and returns the number that spans name it by.
    pub fn add(&mut self, path: impl Into<PathBuf>, text: impl Into<String>) -> usize {
        self.0.push(SourceFile {
            path: path.into(),
            text: text.into(),
        });
        self.0.len() - 1
    }

    /// The source with this number.
    pub fn get(&self, file: usize) -> Option<&SourceFile> {
        self.0.get(file)
    }

    /// The text of a span.
    pub fn slice(&self, span: Span) -> Option<&str> {
        self.get(span.file)?.text.get(span.start..span.end)
    }
}

/// The nearest of some names, when one is near enough to be meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= 1.max(name.len().max(candidate.len()) / 3)
                || (name.len() >= 3 && candidate.starts_with(name))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "did you mean …", or what there is to choose from.
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(near) = nearest(name, known.clone()) {
        return Some(format!("did you mean `{near}`?"));
    }
    let known: Vec<String> = known.into_iter().map(|k| format!("`{k}`")).collect();
    match known.len() {
        0 => None,
        n if n > 24 => Some(format!(
            "there are {}, and {} more",
            known.get(..20).unwrap_or_default().join(", "),
            n - 20
        )),
        _ => Some(format!("there is {}", known.join(", "))),
    }
}
