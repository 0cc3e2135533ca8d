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
    /// A branch that is joined as one row can leave several (a warning).
    JoinCardinality,
    /// An engine, a model or a var that nothing uses (a warning).
    Unused,
}

impl Code {
    /// Every code, in the order of their documentation.
    pub const ALL: [Self; 23] = [
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
        Self::JoinCardinality,
        Self::Unused,
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
            Self::JoinCardinality => "join_cardinality",
            Self::Unused => "unused",
        }
    }

    /// What to do about a problem of this kind, where nothing more is known.
    fn advice(self) -> &'static str {
        match self {
            Self::File => "check the path and the file's permissions",
            Self::YamlSyntax => "put quotes around text with special characters, and indent with spaces",
            Self::UnknownKey => "remove the key; `chainette schema` lists the keys there are",
            Self::MissingKey => "add the key",
            Self::WrongType | Self::BadValue => "write a value of this kind, or leave the key out",
            Self::UnknownEngine | Self::EngineClash => "see `engines:`, and the files given with `--engines`",
            Self::UnknownModel => "declare it below `models:`",
            Self::BadName | Self::DuplicateId | Self::ReservedName => "choose another name",
            Self::UndefinedName => {
                "nothing of this name can be read here; fields of the input are below `chain_input`"
            }
            Self::NotVisible => "read it where it is visible, or join its branch",
            Self::TemplateSyntax => "templates are Jinja",
            Self::JqSyntax => "programs are jq",
            Self::BadModel => "write shorthand (`{field: string}`), or a JSON Schema with `type: object`",
            Self::BadSet => "for example `--set tone=harsh`, with `tone` in the chain's `vars`",
            Self::Unsupported => "leave it out",
            Self::UnknownClosure => "closures are registered by programs that use chainette as a library",
            Self::UnguardedNull => "guard it with `{% if NAME %}...{% endif %}`",
            Self::JoinCardinality => "add `collect: true` to the branch",
            Self::Unused => "remove it, or use it",
        }
    }

    /// True for what does not keep the chain from running.
    pub fn is_warning(self) -> bool {
        matches!(self, Self::UnguardedNull | Self::JoinCardinality | Self::Unused)
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
        self.0.push(problem);
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

    /// The problems in the order of their places, each once: the same fault may be met twice (an
    /// anchor, a model that two nodes name).
    pub fn into_sorted(mut self) -> Vec<Problem> {
        self.0
            .sort_by(|a, b| (a.span, a.code, &a.message).cmp(&(b.span, b.code, &b.message)));
        self.0
            .dedup_by(|a, b| (a.span, a.code, &a.message) == (b.span, b.code, &b.message));
        for problem in &mut self.0 {
            problem
                .help
                .get_or_insert_with(|| problem.code.advice().to_owned());
        }
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

    /// Where a span begins, for a message about `from`: "line 8", with the file where it is another one.
    pub fn line(&self, span: Span, from: Span) -> String {
        let Some(file) = self.get(span.file) else {
            return "another place".to_owned();
        };
        let (line, _) = file.position(span.start);
        if span.file == from.file {
            format!("line {line}")
        } else {
            format!("line {line} of {}", file.path.display())
        }
    }

    /// The text of a span.
    pub fn slice(&self, span: Span) -> Option<&str> {
        self.get(span.file)?.text.get(span.start..span.end)
    }
}

/// The nearest of some names, when one is near enough to be meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A text this long is no typo of a name, and comparing it would take its time.
    if name.len() > 200 {
        return None;
    }
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
