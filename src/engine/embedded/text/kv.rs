//! Keys and values of the tokens that a model has seen, per layer.

use std::sync::Arc;

/// Keys and values of tokens in a row: per layer `tokens × kept` numbers each.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) keys: Vec<Vec<f32>>,
    pub(super) values: Vec<Vec<f32>>,
    tokens: usize,
}

impl Segment {
    fn new(layers: usize) -> Self {
        Self {
            keys: vec![Vec::new(); layers],
            values: vec![Vec::new(); layers],
            tokens: 0,
        }
    }

    /// Tokens in it.
    pub(super) fn len(&self) -> usize {
        self.tokens
    }
}

/// The keys and values of one sequence: a beginning that it may share with others, and its own rest.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) shared: Option<Arc<Segment>>,
    pub(super) own: Segment,
}

impl Kept {
    /// Of a sequence that goes on from `shared`.
    pub(super) fn new(layers: usize, shared: Option<Arc<Segment>>) -> Self {
        Self {
            shared,
            own: Segment::new(layers),
        }
    }

    /// Tokens seen.
    pub(super) fn len(&self) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared.len()) + self.own.tokens
    }

    /// So many more tokens are in all layers.
    pub(super) fn grown(&mut self, tokens: usize) {
        self.own.tokens += tokens;
    }

    /// All of it, to be shared by sequences that begin in the same way.
    pub(super) fn freeze(self) -> Arc<Segment> {
        match self.shared {
            None => Arc::new(self.own),
            Some(shared) => {
                let mut all = Segment::clone(&shared);
                let join = |all: &mut Vec<Vec<f32>>, own: Vec<Vec<f32>>| {
                    for (all, own) in all.iter_mut().zip(own) {
                        all.extend(own);
                    }
                };
                join(&mut all.keys, self.own.keys);
                join(&mut all.values, self.own.values);
                all.tokens += self.own.tokens;
                Arc::new(all)
            }
        }
    }
}
