//! Sorts more entries than fit into memory: sorts chunks, writes them to a temporary file, and merges them when they are read.
//!
//! Memory does not depend on the number of entries: [`CHUNK_BYTES`] while entries are added, [`MERGE_BYTES`] while they are read. The disk
//! holds the entries themselves. The file has no name, so it disappears with the process, even after a crash.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// The size of a chunk in memory, which is sorted and written when it is full.
pub(crate) const CHUNK_BYTES: usize = 16 << 20;

/// The total size of the buffers during a merge. Each chunk's buffer holds at least [`LEAST_ENTRIES`] entries.
const MERGE_BYTES: usize = 16 << 20;

/// The minimum number of entries in a buffer. Smaller buffers would read the file almost entry by entry.
const LEAST_ENTRIES: usize = 16;

/// Collects entries of `N` bytes and sorts them by their bytes.
#[derive(Debug)]
pub(crate) struct Sorter<const N: usize> {
    chunk: Vec<[u8; N]>,
    most: usize,
    file: Option<File>,
    /// The byte offset in the file at which each chunk begins, and the end of the last chunk.
    ends: Vec<u64>,
    entries: u64,
}

impl<const N: usize> Default for Sorter<N> {
    fn default() -> Self {
        Self::holding(CHUNK_BYTES / N)
    }
}

impl<const N: usize> Sorter<N> {
    fn holding(most: usize) -> Self {
        Self { chunk: Vec::new(), most, file: None, ends: vec![0], entries: 0 }
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// Returns an error if the temporary file cannot be created or written, for example because the disk is full.
    pub(crate) fn push(&mut self, entry: [u8; N]) -> io::Result<()> {
        if self.chunk.capacity() == 0 {
            // Reserve all memory at once. A growing vector would hold both copies for a moment, and half as much again at the end.
            self.chunk.reserve_exact(self.most);
        }
        self.chunk.push(entry);
        self.entries += 1;
        if self.chunk.len() < self.most { Ok(()) } else { self.spill() }
    }

    /// Returns the number of entries.
    pub(crate) fn len(&self) -> u64 {
        self.entries
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.chunk.sort_unstable();
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile()?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(self.chunk.as_flattened())?;
        }
        let end = self.ends.last().copied().unwrap_or(0) + (self.chunk.len() * N) as u64;
        self.ends.push(end);
        self.chunk.clear();
        Ok(())
    }

    /// Returns all entries in order.
    ///
    /// # Errors
    /// Returns the same errors as [`Sorter::push`].
    pub(crate) fn sorted(mut self) -> io::Result<Sorted<N>> {
        self.spill()?;
        let runs = self.ends.len() - 1;
        let buffered = (MERGE_BYTES / N / runs.max(1)).clamp(LEAST_ENTRIES, self.most.max(LEAST_ENTRIES));
        let mut sorted = Sorted { file: self.file, runs: Vec::with_capacity(runs), heads: BinaryHeap::new() };
        for bounds in self.ends.windows(2) {
            let run = Run { at: bounds[0], end: bounds[1], buffer: Vec::new(), next: 0, buffered };
            sorted.runs.push(run);
            sorted.advance(sorted.runs.len() - 1)?;
        }
        Ok(sorted)
    }
}

#[derive(Debug)]
struct Run<const N: usize> {
    at: u64,
    end: u64,
    buffer: Vec<[u8; N]>,
    next: usize,
    buffered: usize,
}

/// The sorted entries.
#[derive(Debug)]
pub(crate) struct Sorted<const N: usize> {
    file: Option<File>,
    runs: Vec<Run<N>>,
    heads: BinaryHeap<Reverse<([u8; N], usize)>>,
}

impl<const N: usize> Sorted<N> {
    /// Returns the next entry.
    ///
    /// # Errors
    /// Returns an error if the temporary file cannot be read.
    pub(crate) fn next(&mut self) -> io::Result<Option<[u8; N]>> {
        let Some(Reverse((entry, run))) = self.heads.pop() else { return Ok(None) };
        self.advance(run)?;
        Ok(Some(entry))
    }

    /// Moves the next entry of a run into the heap, and reads the run's next buffer when needed.
    fn advance(&mut self, index: usize) -> io::Result<()> {
        let (Some(file), Some(run)) = (&self.file, self.runs.get_mut(index)) else { return Ok(()) };
        if run.next == run.buffer.len() {
            let left = (run.end - run.at) / N as u64;
            run.buffer.resize(run.buffered.min(usize::try_from(left).unwrap_or(usize::MAX)), [0; N]);
            let bytes = run.buffer.as_flattened_mut();
            file.read_exact_at(bytes, run.at)?;
            run.at += bytes.len() as u64;
            run.next = 0;
        }
        if let Some(entry) = run.buffer.get(run.next) {
            run.next += 1;
            self.heads.push(Reverse((*entry, index)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_come_back_in_order_however_many_chunks_they_took(mut entries: Vec<[u8; 3]>, most in 1..40_usize) {
            let mut sorter = Sorter::holding(most);
            for entry in &entries {
                sorter.push(*entry).expect("a temporary file");
            }
            prop_assert!(sorter.chunk.len() < most);
            prop_assert_eq!(sorter.len(), entries.len() as u64);
            let mut sorted = sorter.sorted().expect("a temporary file");
            entries.sort_unstable();
            for entry in entries {
                prop_assert_eq!(sorted.next().expect("a temporary file"), Some(entry));
            }
            prop_assert_eq!(sorted.next().expect("a temporary file"), None);
        }
    }
}
