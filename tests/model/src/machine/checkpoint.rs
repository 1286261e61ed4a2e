//! Saves and restores a whole machine.

use super::{Machine, SoftwareUnit, State};

/// A saved machine: memory, units with all that they cache, the clock. Frames are shared until written.
pub struct Checkpoint(State);

impl Clone for Box<dyn SoftwareUnit> {
    /// # Panics
    /// When the unit cannot be copied.
    fn clone(&self) -> Self {
        self.as_ref().copy().expect("a unit that can be copied")
    }
}

impl Machine {
    /// Saves the whole machine.
    ///
    /// # Panics
    /// When a unit cannot be copied.
    #[must_use]
    pub fn save(&self) -> Checkpoint {
        Checkpoint(self.state().clone())
    }

    /// Restores a saved machine. Seams handed out before go on working.
    pub fn restore(&self, saved: &Checkpoint) {
        *self.state() = saved.0.clone();
    }

    /// Returns the first difference, in words, between the tables that these units read now and then, word by word.
    /// With `memory`, also compares the frames and buffers in use.
    #[must_use]
    pub fn difference(&self, before: &Checkpoint, units: &[usize], memory: bool) -> Option<String> {
        let now = self.state();
        let then = &before.0;
        for unit in units {
            let (a, b) = (now.table_frames_of(*unit), then.table_frames_of(*unit));
            if a != b {
                return Some(format!("unit {unit} walked tables {b:x?}, now {a:x?}"));
            }
            for frame in a {
                if let Some((word, was, is)) = now.memory.differs(&then.memory, frame) {
                    let at = format!("word {word} of the table at {frame:#x}");
                    return Some(format!("unit {unit}: {at} was {was:#x}, is {is:#x}"));
                }
            }
        }
        if !memory {
            return None;
        }
        if now.tables.in_use() != then.tables.in_use() {
            let (a, b) = (now.tables.in_use(), then.tables.in_use());
            return Some(format!("{b} frames of tables were in use, now {a}"));
        }
        let (a, b) = (now.buffers.in_use(), then.buffers.in_use());
        (a != b).then(|| format!("buffers {b:?} were in use, now {a:?}"))
    }
}

impl State {
    /// Frames that a unit reads as tables, ascending.
    fn table_frames_of(&self, unit: usize) -> Vec<u64> {
        let (device, view) = self.view(unit);
        let tables = device.tables(view, super::Through::Tables).into_iter();
        let mut frames: Vec<u64> = tables.map(|(frame, _)| frame).collect();
        frames.sort_unstable();
        frames.dedup();
        frames
    }
}
