//! Beginnings of prompts that come again and again: what the model made of them is kept.

use std::sync::Arc;

use super::kv::Segment;

/// Beginnings that are kept.
const KEPT: usize = 4;
/// Prompts that new ones are compared with.
const RECENT: usize = 8;
/// A beginning of fewer tokens is not worth it.
const LEAST: usize = 8;

/// What is known of prompts that came before.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    /// The one that was used last at the end.
    kept: Vec<Prefix>,
    recent: Vec<Vec<u32>>,
}

/// A beginning, worked on.
#[derive(Clone, Debug)]
struct Prefix {
    tokens: Vec<u32>,
    segment: Arc<Segment>,
}

/// What to do with a prompt.
#[derive(Debug)]
pub(super) struct Advice {
    /// The longest beginning that is kept, and how many tokens it has.
    pub(super) known: Option<Arc<Segment>>,
    /// So many tokens should be kept: another prompt began with them.
    pub(super) keep: Option<usize>,
}

impl Prefixes {
    /// Looks at a new prompt.
    pub(super) fn look(&mut self, prompt: &[u32]) -> Advice {
        // One token at least must be worked on, to know what comes after it.
        let most = prompt.len().saturating_sub(1);
        let fits = |prefix: &Prefix| prefix.tokens.len() <= most && prompt.starts_with(&prefix.tokens);
        let longest = self
            .kept
            .iter()
            .enumerate()
            .filter(|(_, prefix)| fits(prefix))
            .max_by_key(|(_, prefix)| prefix.tokens.len())
            .map(|(at, _)| at);
        let known = longest.map(|at| {
            let prefix = self.kept.remove(at);
            self.kept.push(prefix.clone());
            prefix.segment
        });
        let common = |other: &Vec<u32>| other.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let shared = self.recent.iter().map(common).max().unwrap_or(0).min(most);
        let have = known.as_ref().map_or(0, |segment| segment.len());
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(prompt.to_vec());
        Advice {
            known,
            keep: (shared >= have + LEAST).then_some(shared),
        }
    }

    /// Keeps a beginning.
    pub(super) fn keep(&mut self, tokens: &[u32], segment: &Arc<Segment>) {
        if self.kept.len() == KEPT {
            self.kept.remove(0);
        }
        self.kept.push(Prefix {
            tokens: tokens.to_vec(),
            segment: Arc::clone(segment),
        });
    }
}
