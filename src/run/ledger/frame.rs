//! One entry of the ledger as bytes.
//!
//! A frame is `length u32 · checksum 8 bytes · payload`; a payload `kind u8 · ordinal u64 · turn u32 · request
//! digest 32 bytes · node · row id · body` (texts with a u16 length, the body to the end; little endian).

use super::index::{Entry, Kind};
use crate::node::answer::AnswerKey;

/// Bytes before a payload.
const HEAD: usize = 12;

/// A frame's content.
#[derive(Debug)]
pub(super) struct Payload<'a> {
    pub(super) kind: Kind,
    pub(super) ordinal: u64,
    pub(super) turn: u32,
    pub(super) digest: [u8; 32],
    pub(super) node: &'a str,
    pub(super) row_id: &'a str,
    /// Of an answer its bytes, of an alias the place of the answer it stands for, of a void nothing.
    pub(super) body: &'a [u8],
}

impl<'a> Payload<'a> {
    /// Reads a payload; none if it is not one.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (ordinal, rest) = rest.split_first_chunk::<8>()?;
        let (turn, rest) = rest.split_first_chunk::<4>()?;
        let (digest, rest) = rest.split_first_chunk::<32>()?;
        let text = |bytes: &'a [u8]| {
            let (len, rest) = bytes.split_first_chunk::<2>()?;
            let (text, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
            Some((std::str::from_utf8(text).ok()?, rest))
        };
        let (node, rest) = text(rest)?;
        let (row_id, body) = text(rest)?;
        Some(Self {
            kind: Kind::from_byte(*kind)?,
            ordinal: u64::from_le_bytes(*ordinal),
            turn: u32::from_le_bytes(*turn),
            digest: *digest,
            node,
            row_id,
            body,
        })
    }

    /// True for what can be one at all: Steps have names.
    fn is_plausible(&self) -> bool {
        let is_id = |text: &str| {
            text.bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        };
        !self.node.is_empty() && is_id(self.node) && self.row_id.starts_with(|c: char| c.is_ascii_digit())
    }

    /// What the index knows of it, for a frame at `place`; none if its body cannot be.
    pub(super) fn entry(&self, place: u64) -> Option<Entry> {
        Some(Entry {
            kind: self.kind,
            row: row_hash(self.node, self.row_id),
            content: content_hash(&self.digest, self.turn),
            ordinal: self.ordinal,
            place,
            source: match self.kind {
                Kind::Alias => self.source()?,
                Kind::Answer | Kind::Void | Kind::Fault => place,
            },
        })
    }

    /// Of an alias: the place of the answer that it stands for.
    pub(super) fn source(&self) -> Option<u64> {
        Some(u64::from_le_bytes(self.body.try_into().ok()?))
    }
}

/// A whole frame.
///
/// # Errors
/// A text or the answer is too long for its length field.
pub(super) fn frame(kind: Kind, key: &AnswerKey<'_>, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let row_id = key.row_id.to_string();
    let mut out = Vec::with_capacity(HEAD + 64 + key.node.len() + row_id.len() + body.len());
    out.extend_from_slice(&[0; HEAD]);
    out.push(kind as u8);
    out.extend_from_slice(&key.row_id.ordinal().to_le_bytes());
    out.extend_from_slice(&key.turn.to_le_bytes());
    out.extend_from_slice(&key.digest);
    for text in [key.node, &row_id] {
        let len = u16::try_from(text.len()).map_err(std::io::Error::other)?;
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(body);
    let payload = out.get(HEAD..).unwrap_or_default();
    let len = u32::try_from(payload.len()).map_err(std::io::Error::other)?;
    let sum = checksum(payload);
    if let Some((head, rest)) = out.split_first_chunk_mut::<4>() {
        *head = len.to_le_bytes();
        if let Some(place) = rest.first_chunk_mut::<8>() {
            *place = sum;
        }
    }
    Ok(out)
}

/// The payload of the frame that begins here and the bytes it takes with its head, if it is whole. Checksums are looked at last,
/// of what `is_likely`.
pub(super) fn next(bytes: &[u8], is_likely: impl FnOnce(&[u8]) -> bool) -> Option<(&[u8], usize)> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let (len, sum) = head.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    let payload = rest.get(..len)?;
    (is_likely(payload) && checksum(payload) == sum).then_some((payload, HEAD + len))
}

/// The bytes a frame takes, by its first ones; none if these are too few to say.
pub(super) fn size(bytes: &[u8]) -> Option<usize> {
    let len = u32::from_le_bytes(*bytes.first_chunk::<4>()?);
    Some(HEAD + usize::try_from(len).ok()?)
}

/// Goes through the frames of a segment that begins at `place`, each with the bytes before it; returns the bytes up to the
/// end of the last whole one.
///
/// What the disk damaged costs the answers in it, not those after it: the next frame is looked for byte by byte.
pub(super) fn scan(bytes: &[u8], place: u64, mut found: impl FnMut(Entry, usize)) -> usize {
    let (mut at, mut end) = (0, 0);
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() > HEAD) {
        let entry = |payload: &[u8]| {
            Payload::parse(payload)
                .filter(Payload::is_plausible)?
                .entry(place + at as u64)
        };
        match next(rest, |payload| entry(payload).is_some()) {
            Some((payload, size)) => {
                if let Some(entry) = entry(payload) {
                    found(entry, at);
                }
                at += size;
                end = at;
            }
            None => at += 1,
        }
    }
    end
}

/// Eight bytes of BLAKE3.
pub(super) fn checksum(bytes: &[u8]) -> [u8; 8] {
    short(&blake3::hash(bytes)).to_le_bytes()
}

/// What stands for a row at a Step.
pub(super) fn row_hash(node: &str, row_id: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(node.as_bytes());
    hasher.update(b"\0");
    hasher.update(row_id.as_bytes());
    short(&hasher.finalize())
}

/// What stands for a request: the digest is a hash already; the same request may be asked in several turns.
pub(super) fn content_hash(digest: &[u8; 32], turn: u32) -> u64 {
    let short = digest
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    short.wrapping_add(u64::from(turn).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn short(hash: &blake3::Hash) -> u64 {
    let bytes = hash.as_bytes().first_chunk::<8>();
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
