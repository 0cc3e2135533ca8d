//! A full segment, compressed.
//!
//! `NNNNNN.zst` is a row of zstd frames, each of whole ledger frames of about 128 KiB. After them come, as one zstd frame,
//! by entry what the index needs, so that opening reads no answers; then by block where it begins in the segment as it
//! was written and where in this file (two u64 each); then a trailer: `offset of the entries u64 · their bytes u64 ·
//! number of blocks u64 · checksum of the entries 8 bytes · of the blocks 8 bytes · magic 8 bytes`.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use fs_err::{self as fs, File};

use super::frame;
use super::index::{Entry, Kind};
use super::{Segment, place_of};
use crate::failpoint;
use crate::sink::sync_dir;

/// What a block holds before it is compressed, about.
const BLOCK: usize = 128 << 10;
/// The fastest: it runs beside the engine's clients.
const LEVEL: i32 = 1;
const MAGIC: [u8; 8] = *b"chnledg2";
const TRAILER: usize = 48;
/// Bytes of an entry in a table.
const ENTRY: usize = 41;
/// Blocks that are kept when answers are read back. Rows come back about as they went.
const KEPT: usize = 32;

/// Compresses a segment and removes it. Whatever happens, one of both is whole.
///
/// # Errors
/// The disk said no; the segment is as it was.
pub(super) fn seal(dir: &Path, segment: Segment) -> std::io::Result<()> {
    let (log, sealed) = (segment.log(dir), segment.sealed(dir));
    failpoint::hit("seal.begun")?;
    let bytes = fs::read(&log)?;
    let tmp = dir.join(format!("{:06}.tmp", segment.0));
    let written = write(&tmp, &bytes, segment)
        .and_then(|()| failpoint::hit("seal.written"))
        .and_then(|()| fs::rename(&tmp, &sealed));
    if let Err(error) = written {
        // The next process removes it if we cannot.
        let _scratch = fs::remove_file(&tmp);
        return Err(error);
    }
    sync_dir(dir)?;
    failpoint::hit("seal.renamed")?;
    fs::remove_file(&log)?;
    failpoint::hit("seal.removed")
}

fn write(path: &Path, bytes: &[u8], segment: Segment) -> std::io::Result<()> {
    let mut entries = Vec::new();
    let mut cuts = vec![0];
    let end = frame::scan(bytes, segment.start(), |entry, at| {
        let last = cuts.last().copied().unwrap_or(0);
        if at >= last + BLOCK {
            cuts.push(at);
        }
        entries.push(entry.kind as u8);
        for number in [entry.row, entry.content, entry.ordinal, entry.place, entry.source] {
            entries.extend_from_slice(&number.to_le_bytes());
        }
    });
    let mut file = File::create(path)?;
    let mut written = 0_u64;
    let mut blocks = Vec::new();
    for (i, from) in cuts.iter().enumerate() {
        let to = cuts.get(i + 1).copied().unwrap_or(end);
        let block = zstd::bulk::compress(bytes.get(*from..to).unwrap_or_default(), LEVEL)?;
        blocks.extend_from_slice(&(*from as u64).to_le_bytes());
        blocks.extend_from_slice(&written.to_le_bytes());
        file.write_all(&block)?;
        written += block.len() as u64;
    }
    let entries = zstd::bulk::compress(&entries, LEVEL)?;
    let mut trailer = Vec::with_capacity(TRAILER);
    for number in [written, entries.len() as u64, cuts.len() as u64] {
        trailer.extend_from_slice(&number.to_le_bytes());
    }
    trailer.extend_from_slice(&frame::checksum(&entries));
    trailer.extend_from_slice(&frame::checksum(&blocks));
    trailer.extend_from_slice(&MAGIC);
    for part in [entries, blocks, trailer] {
        file.write_all(&part)?;
    }
    file.sync_all()
}

/// What the trailer of a sealed segment says.
struct Trailer {
    /// Where the blocks end in the file and the entries begin.
    entries_at: u64,
    entries_len: u64,
    entries_sum: [u8; 8],
    blocks_at: u64,
    blocks_len: u64,
    blocks_sum: [u8; 8],
}

impl Trailer {
    /// Reads the trailer of a file; none if it is damaged.
    fn read(file: &File) -> std::io::Result<Option<Self>> {
        let len = file.metadata()?.len();
        let Some(at) = len.checked_sub(TRAILER as u64) else {
            return Ok(None);
        };
        let mut bytes = [0; TRAILER];
        file.file().read_exact_at(&mut bytes, at)?;
        let parse = || {
            let (numbers, rest) = bytes.split_first_chunk::<24>()?;
            let mut numbers = numbers.chunks_exact(8).map(number);
            let (entries_at, entries_len) = (numbers.next()?, numbers.next()?);
            let blocks_len = numbers.next()?.checked_mul(16)?;
            let (entries_sum, rest) = rest.split_first_chunk::<8>()?;
            let (blocks_sum, magic) = rest.split_first_chunk::<8>()?;
            let blocks_at = entries_at.checked_add(entries_len)?;
            let whole = *magic == MAGIC && blocks_at.checked_add(blocks_len)? == at;
            whole.then_some(Self {
                entries_at,
                entries_len,
                entries_sum: *entries_sum,
                blocks_at,
                blocks_len,
                blocks_sum: *blocks_sum,
            })
        };
        Ok(parse())
    }

    /// The entries as bytes; none if they are damaged.
    fn entries(&self, file: &File) -> std::io::Result<Option<Vec<u8>>> {
        let packed = part(file, self.entries_at, self.entries_len, self.entries_sum)?;
        packed
            .map(|packed| zstd::stream::decode_all(packed.as_slice()))
            .transpose()
    }

    /// By block where it begins in the segment and where in the file; none if that is damaged.
    fn blocks(&self, file: &File) -> std::io::Result<Option<Vec<(u64, u64)>>> {
        let bytes = part(file, self.blocks_at, self.blocks_len, self.blocks_sum)?;
        let pairs = |bytes: Vec<u8>| {
            let pairs = bytes.chunks_exact(16).map(|pair| pair.split_at(8));
            pairs.map(|(start, at)| (number(start), number(at))).collect()
        };
        Ok(bytes.map(pairs))
    }
}

/// A part of a file, if its checksum is right.
fn part(file: &File, at: u64, len: u64, sum: [u8; 8]) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.file().read_exact_at(&mut bytes, at)?;
    Ok((frame::checksum(&bytes) == sum).then_some(bytes))
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn entry(bytes: &[u8]) -> Option<Entry> {
    let (kind, rest) = bytes.split_first()?;
    let mut numbers = rest.chunks_exact(8).map(number);
    Some(Entry {
        kind: Kind::from_byte(*kind)?,
        row: numbers.next()?,
        content: numbers.next()?,
        ordinal: numbers.next()?,
        place: numbers.next()?,
        source: numbers.next()?,
    })
}

/// Hands over all entries of a sealed segment, after it was told how many there will be.
///
/// # Errors
/// The file cannot be read. What is damaged in it is passed over: those answers are asked for again.
pub(super) fn entries(
    dir: &Path,
    segment: Segment,
    mut found: impl FnMut(usize, Entry),
) -> std::io::Result<()> {
    let path = segment.sealed(dir);
    let file = File::open(&path)?;
    let entries = Trailer::read(&file)?
        .map(|trailer| trailer.entries(&file))
        .transpose()?;
    if let Some(entries) = entries.flatten() {
        let left = entries.len() / ENTRY;
        let all = entries.chunks_exact(ENTRY).filter_map(entry).enumerate();
        all.for_each(|(i, entry)| found(left - i, entry));
        return Ok(());
    }
    tracing::warn!(path = %path.display(), "this segment of the ledger is damaged; what is whole in it is used");
    for (start, block) in salvage(&file)? {
        let place = segment.start() + start;
        frame::scan(&block, place, |entry, _| found(1, entry));
    }
    Ok(())
}

/// The blocks of a file whose table is damaged, each with where it begins in the segment.
fn salvage(file: &File) -> std::io::Result<Vec<(u64, Vec<u8>)>> {
    let mut packed = Vec::new();
    file.file().try_clone()?.read_to_end(&mut packed)?;
    let (mut rest, mut start, mut blocks) = (packed.as_slice(), 0, Vec::new());
    while let Ok(size) = zstd::zstd_safe::find_frame_compressed_size(rest)
        && let Some((frame, after)) = rest.split_at_checked(size)
        && let Ok(block) = zstd::stream::decode_all(frame)
    {
        let len = block.len() as u64;
        blocks.push((start, block));
        (start, rest) = (start + len, after);
    }
    Ok(blocks)
}

/// A block as it is kept: its segment, where it begins in it, and its frames.
type Block = (Segment, u64, Arc<Vec<u8>>);

/// Reads answers back, a block at a time.
#[derive(Debug, Default)]
pub(super) struct Blocks(Mutex<VecDeque<Block>>);

impl Blocks {
    /// The payload of the frame at a place; none if it is damaged or gone.
    pub(super) fn payload(&self, dir: &Path, place: u64) -> Option<Vec<u8>> {
        let (segment, offset) = place_of(place);
        let (start, block) = self.block(dir, segment, offset)?;
        let at = usize::try_from(offset.checked_sub(start)?).ok()?;
        frame::next(block.get(at..)?, |_| true).map(|(payload, _)| payload.to_vec())
    }

    fn block(&self, dir: &Path, segment: Segment, offset: u64) -> Option<(u64, Arc<Vec<u8>>)> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |(of, start, block): &Block| {
            *of == segment && (*start..*start + block.len() as u64).contains(&offset)
        };
        if let Some(at) = kept.iter().position(holds)
            && let Some(found) = kept.remove(at)
        {
            let (_, start, block) = &found;
            let found_block = (*start, block.clone());
            kept.push_front(found);
            return Some(found_block);
        }
        let (start, block) = read_block(dir, segment, offset)
            .inspect_err(|error| tracing::warn!(%error, "answers on file cannot be read"))
            .ok()??;
        let block = Arc::new(block);
        kept.push_front((segment, start, block.clone()));
        kept.truncate(KEPT);
        Some((start, block))
    }
}

/// Reads the block of a sealed segment that holds what stood at `offset` of it.
fn read_block(dir: &Path, segment: Segment, offset: u64) -> std::io::Result<Option<(u64, Vec<u8>)>> {
    let file = File::open(segment.sealed(dir))?;
    let trailer = Trailer::read(&file)?;
    let blocks = trailer
        .as_ref()
        .map(|trailer| trailer.blocks(&file))
        .transpose()?;
    let (Some(trailer), Some(Some(blocks))) = (trailer, blocks) else {
        let blocks = salvage(&file)?.into_iter();
        return Ok(blocks.take_while(|(start, _)| *start <= offset).last());
    };
    let after = blocks.partition_point(|(start, _)| *start <= offset);
    let Some((start, at)) = after.checked_sub(1).and_then(|i| blocks.get(i).copied()) else {
        return Ok(None);
    };
    let end = blocks.get(after).map_or(trailer.entries_at, |(_, at)| *at);
    let mut packed = vec![0; usize::try_from(end.saturating_sub(at)).unwrap_or(0)];
    file.file().read_exact_at(&mut packed, at)?;
    Ok(Some((start, zstd::stream::decode_all(packed.as_slice())?)))
}
