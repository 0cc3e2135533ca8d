//! Where the answers of former processes stand: 16 bytes of memory each, 33 when answers may be found by their request
//! alone.

use std::collections::HashMap;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// An answer to a request of a row.
    Answer = 0,
    /// A row took the answer that another row got to the same request.
    Alias = 1,
    /// What a row was answered before is not used again: it failed with it and is asked again.
    Void = 2,
    /// What came of a try instead of a reply; found as an answer is.
    Fault = 3,
}

impl Kind {
    /// The kind that is written as a byte.
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        let all = [Self::Answer, Self::Alias, Self::Void, Self::Fault];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// What is known of a frame without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// See [`super::frame::row_hash`].
    pub(super) row: u64,
    /// See [`super::frame::content_hash`].
    pub(super) content: u64,
    /// The input row it belongs to.
    pub(super) ordinal: u64,
    /// Where it stands.
    pub(super) place: u64,
    /// Where the answer stands; of an alias that of another row.
    pub(super) source: u64,
}

/// Finds answers by row and request, or by the request alone.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By row and request: a hash of both, and the place. Sorted.
    own: Vec<(u64, u64)>,
    /// By request: its hash and the place, of answers of before an edit. Sorted.
    by_request: Vec<(u64, u64)>,
    /// Of `by_request`: which were taken.
    taken: Vec<u64>,
    /// Where to look on in a long row of equal requests of which the first were taken.
    ahead: HashMap<u64, usize>,
    /// Places that aliases name, until the index is sorted.
    aliased: Vec<(u64, u64)>,
}

/// Equal requests that are looked through before it is noted how far that got.
const PATIENCE: usize = 64;

impl Index {
    /// Adds an entry; one of before an edit also for those who ask the same without being the same row.
    pub(super) fn add(&mut self, entry: &Entry, before_edit: bool) {
        match (entry.kind, before_edit) {
            (Kind::Void, _) => return,
            (Kind::Answer | Kind::Fault, true) => self.by_request.push((entry.content, entry.place)),
            // Rows of before the edit have no claim any more.
            (Kind::Answer | Kind::Fault, false) | (Kind::Alias, true) => {}
            (Kind::Alias, false) => self.aliased.push((entry.content, entry.source)),
        }
        self.own.push((own(entry.row, entry.content), entry.place));
    }

    /// Makes room when there is none, for so many entries more: growing by half would waste what it is to save.
    pub(super) fn expect(&mut self, entries: usize, before_edit: bool) {
        for list in [&mut self.own, &mut self.by_request]
            .into_iter()
            .take(1 + usize::from(before_edit))
        {
            if list.len() == list.capacity() {
                // Entries that come one by one come a segment at a time at most.
                list.reserve_exact(entries.max(1024));
            }
        }
    }

    /// To be called once all entries are added.
    pub(super) fn sort(&mut self) {
        self.own.sort_unstable();
        self.own.dedup();
        self.by_request.sort_unstable();
        self.own.shrink_to_fit();
        self.by_request.shrink_to_fit();
        self.taken = vec![0; self.by_request.len().div_ceil(64)];
        for (content, place) in std::mem::take(&mut self.aliased) {
            self.take(content, place);
        }
    }

    /// True when nothing can be found.
    pub(super) fn is_empty(&self) -> bool {
        self.own.is_empty()
    }

    /// Where a row's answers to a request may stand, the latest first.
    pub(super) fn own(&self, row: u64, content: u64) -> impl Iterator<Item = u64> {
        let key = own(row, content);
        let from = self.own.partition_point(|(found, _)| *found < key);
        let same = self.own.get(from..).unwrap_or_default();
        let to = same.iter().take_while(|(found, _)| *found == key).count();
        same.get(..to)
            .unwrap_or_default()
            .iter()
            .rev()
            .map(|(_, place)| *place)
    }

    /// Notes that an answer of before the edit has its row: nobody else takes it. False if it had one.
    pub(super) fn take(&mut self, content: u64, place: u64) -> bool {
        let at = self.by_request.binary_search(&(content, place));
        let Some((at, word)) = at.ok().and_then(|at| Some((at, self.taken.get_mut(at / 64)?))) else {
            return true;
        };
        let bit = 1 << (at % 64);
        let is_free = *word & bit == 0;
        *word |= bit;
        is_free
    }

    /// Takes the first answer to a request that nobody took.
    pub(super) fn take_any(&mut self, content: u64) -> Option<u64> {
        let first = self.by_request.partition_point(|(found, _)| *found < content);
        let from = self.ahead.get(&content).copied().unwrap_or(first);
        let mut at = from;
        let mut taken = None;
        while let Some((_, place)) = self.by_request.get(at).filter(|(found, _)| *found == content)
            && let Some(word) = self.taken.get_mut(at / 64)
            && taken.is_none()
        {
            let bit = 1 << (at % 64);
            if *word & bit == 0 {
                *word |= bit;
                taken = Some(*place);
            }
            at += 1;
        }
        if at - from >= PATIENCE {
            self.ahead.insert(content, at);
        }
        taken
    }
}

/// Both are hashes: what is left of them together is one.
fn own(row: u64, content: u64) -> u64 {
    row.rotate_left(29) ^ content
}
