//! Which flags a program knows: asked once with `--help`, and again when the program is another one.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::outside;
use super::remembered::Remembered;
use crate::source::Fingerprint;

/// How long `--help` may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The flags that a program lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Abilities(BTreeSet<String>);

impl Abilities {
    /// Asks a program. One that does not answer knows nothing.
    pub(super) fn of(program: &Path, state: &Path) -> Self {
        let Ok(of) = Fingerprint::of(program) else {
            return Self::default();
        };
        let known = Remembered::new(state, "programs.json");
        if let Some(flags) = known.get(&of) {
            return Self(flags);
        }
        let mut command = Command::new(program);
        command.arg("--help");
        match outside::output(command, PATIENCE) {
            Ok(said) => {
                let flags = flags(&said.text);
                known.put(&of, flags.clone());
                Self(flags)
            }
            // It may answer the next time: nothing is kept.
            Err(error) => {
                tracing::debug!(program = %program.display(), %error, "no --help");
                Self::default()
            }
        }
    }

    /// True when it lists this flag.
    pub(super) fn knows(&self, flag: &str) -> bool {
        self.0.contains(flag)
    }
}

/// Every word of a text that is a long flag.
fn flags(text: &str) -> BTreeSet<String> {
    let separators =
        |c: char| c.is_whitespace() || matches!(c, ',' | '|' | '[' | ']' | '=' | '(' | ')' | '\'' | '`');
    text.split(separators)
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .map(str::to_owned)
        .collect()
}
