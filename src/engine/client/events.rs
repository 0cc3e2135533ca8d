//! Streams, cut into lines and events: server-sent events (WHATWG HTML §9.2) and JSON lines.

use super::http::too_large;
use crate::engine::CallError;

/// Cuts a stream of bytes into lines that end in LF, CR LF or CR; a character may be cut between two
/// pieces, a line is only read whole.
#[derive(Debug)]
pub(super) struct Lines {
    pending: Vec<u8>,
    /// Bytes of `pending` that hold no line end.
    looked: usize,
    /// The last line ended in CR: an LF right after it belongs to that.
    after_cr: bool,
    /// The longest line in bytes.
    longest: u64,
}

impl Lines {
    pub(super) fn new(longest: u64) -> Self {
        Self {
            pending: Vec::new(),
            looked: 0,
            after_cr: false,
            longest,
        }
    }

    /// Adds a piece of the stream.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), CallError> {
        let piece = match piece.split_first() {
            Some((b'\n', rest)) if self.after_cr => rest,
            _ => piece,
        };
        self.after_cr &= piece.is_empty();
        if (self.pending.len() + piece.len()) as u64 > self.longest.saturating_add(MARGIN) {
            return Err(too_large());
        }
        self.pending.extend_from_slice(piece);
        Ok(())
    }

    /// Every whole line that has come in, in order.
    pub(super) fn whole(&mut self) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let mut start = 0;
        while let Some(found) = self
            .pending
            .get(self.looked..)
            .and_then(|rest| memchr::memchr2(b'\n', b'\r', rest))
        {
            let end = self.looked + found;
            lines.push(self.pending.get(start..end).unwrap_or_default().to_vec());
            start = end + 1;
            if self.pending.get(end) == Some(&b'\r') {
                match self.pending.get(start) {
                    Some(b'\n') => start += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            self.looked = start;
        }
        self.pending.drain(..start);
        self.looked = self.pending.len();
        lines
    }

    /// What stands after the last line end.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        self.looked = 0;
        std::mem::take(&mut self.pending)
    }
}

/// Room beside the reply's own text in the line that carries it: escapes and the protocol's fields.
const MARGIN: u64 = 1 << 20;

/// Puts events together from lines: `data:` lines up to a blank one. Comments and other fields say
/// nothing here; llama.cpp once sent errors in a field `error:`, which counts as data.
#[derive(Debug)]
pub(super) struct Events {
    data: Vec<u8>,
    any: bool,
    /// The most data of one event, in bytes.
    longest: u64,
}

impl Events {
    pub(super) fn new(longest: u64) -> Self {
        Self {
            data: Vec::new(),
            any: false,
            longest,
        }
    }

    /// Takes a line; the event that it ends, if it ends one.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<Option<Vec<u8>>, CallError> {
        if line.is_empty() {
            return Ok(self.end());
        }
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let (field, value) = line.split_at_checked(colon).unwrap_or((line, b""));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if self.any {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
                self.any = true;
            }
            b"error" => {
                self.data = [b"{\"error\":", value, b"}"].concat();
                self.any = true;
            }
            _ => {}
        }
        if self.data.len() as u64 > self.longest.saturating_add(MARGIN) {
            return Err(too_large());
        }
        Ok(None)
    }

    /// The event so far; servers that close the connection leave out the last blank line.
    pub(super) fn end(&mut self) -> Option<Vec<u8>> {
        let data = std::mem::take(&mut self.data);
        std::mem::take(&mut self.any).then_some(data)
    }
}
