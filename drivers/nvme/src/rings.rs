//! A submission ring and its completion ring (3.3.1), in memory of the client library.

use std::sync::atomic::{Ordering, fence};

use iommu_client::{BufferOptions, Device, DmaBuffer};

use crate::error::Error;
use crate::spec::{Command, Completion, phase};

/// Bytes of an entry of a completion ring.
const ENTRY: usize = 16;

/// Two rings with the same number of entries. Each is one range of addresses, as the controller requires.
pub(crate) struct Rings {
    submission: DmaBuffer<[Command]>,
    completion: DmaBuffer<[[u32; 4]]>,
    entries: u16,
    tail: u16,
    head: u16,
    /// The phase bit that the next completion will have.
    phase: bool,
}

impl Rings {
    pub(crate) fn new(
        device: &Device,
        entries: u16,
        options: BufferOptions,
    ) -> Result<Self, Error> {
        let count = usize::from(entries);
        Ok(Self {
            submission: DmaBuffer::zeroed_slice_with(device, count, options)?,
            completion: DmaBuffer::zeroed_slice_with(device, count, options)?,
            entries,
            tail: 0,
            head: 0,
            phase: true,
        })
    }

    /// Empties both rings, for a controller that was reset.
    pub(crate) fn clear(&mut self) {
        let cleared = self.completion.fill(0, usize::from(self.entries) * ENTRY, 0);
        debug_assert!(cleared.is_ok());
        (self.tail, self.head, self.phase) = (0, 0, true);
    }

    pub(crate) const fn entries(&self) -> u16 {
        self.entries
    }

    /// Addresses of the submission and the completion ring.
    pub(crate) const fn addresses(&self) -> (u64, u64) {
        (self.submission.iova(), self.completion.iova())
    }

    /// Writes a command, and returns the new tail for the doorbell. There is room for `entries - 1` commands under
    /// way, which the caller counts.
    pub(crate) fn push(&mut self, identifier: u16, command: &Command) -> u16 {
        let [first, rest @ ..] = *command;
        let mut words = [first | u32::from(identifier) << 16; 16];
        if let Some(places) = words.last_chunk_mut() {
            *places = rest;
        }
        let written = self.submission.set(usize::from(self.tail), words.map(u32::to_le));
        debug_assert!(written.is_ok());
        self.tail = self.after(self.tail);
        self.tail
    }

    /// Returns the next completion, if it has arrived, and the new head for the doorbell.
    pub(crate) fn pop(&mut self) -> Option<(Completion, u16)> {
        // The last word shows whether the entry is new. The other words, and the data, are read after it.
        let entry = ENTRY as u64 * u64::from(self.head);
        let word = u32::from_le(*self.completion.snapshot_at(entry + 12).ok()?);
        if phase(word) != self.phase {
            return None;
        }
        fence(Ordering::Acquire);
        let result = u32::from_le(*self.completion.snapshot_at(entry).ok()?);
        self.head = self.after(self.head);
        self.phase ^= self.head == 0;
        Some((Completion::from_words(result, word), self.head))
    }

    const fn after(&self, index: u16) -> u16 {
        if index + 1 < self.entries { index + 1 } else { 0 }
    }
}
