//! Runs of pages, two of which never touch.

use std::collections::BTreeMap;
use std::ops::Range;

/// Runs by their first page.
#[derive(Debug, Default)]
pub(super) struct Runs(BTreeMap<usize, usize>);

impl Runs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All runs, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        self.0.iter().map(|(first, end)| *first..*end)
    }

    /// Joins a run to the others; returns the one that it is part of now.
    pub(super) fn give(&mut self, run: Range<usize>) -> Range<usize> {
        let Range { mut start, mut end } = run;
        if start >= end {
            return start..start;
        }
        if let Some((before, _)) = self.0.range(..start).next_back().filter(|(_, at)| **at == start)
        {
            start = *before;
        }
        if let Some(behind) = self.0.remove(&end) {
            end = behind;
        }
        self.0.insert(start, end);
        start..end
    }

    /// Takes a part of a run out.
    pub(super) fn take(&mut self, part: &Range<usize>) {
        let Some((first, end)) = self.0.range(..=part.start).next_back() else { return };
        let (first, end) = (*first, *end);
        self.0.remove(&first);
        if first < part.start {
            self.0.insert(first, part.start);
        }
        if part.end < end {
            self.0.insert(part.end, end);
        }
    }
}
