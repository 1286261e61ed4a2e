//! A page table grows while a device uses it.

use super::*;

/// The first address beyond page tables of three levels.
const BEYOND: u64 = 1 << 39;

impl Suite {
    /// Adds a root above the one in the device's entry, once for each supported level. The device works throughout,
    /// and reaches further addresses afterwards.
    pub(super) fn becomes_deeper(&mut self) -> Outcome {
        let edu = self.edu()?;
        let supported = self.unit.capabilities().levels;
        let mut table = self.table(3, PageSizes::SIZE_4K)?;
        self.map(&mut table, 0x1_0000, GRANTED, 0x1000, READ_WRITE)?;
        self.attach(edu, &table, TAG)?;
        ensure!(reaches(edu, 0x1_0000, GRANTED), "does not reach its memory");
        ensure!(denied(edu, BEYOND, OTHERS), "reaches what nothing maps");
        let mut depths = 0;
        for levels in 4..=6u8 {
            if !supported.contains(LevelSet::from_bits_retain(1 << levels)) {
                continue;
            }
            table.grow(&mut self.memory, levels).map_err(|error| format!("{error}"))?;
            ensure!(reaches(edu, 0x1_0000, GRANTED), "{levels} levels: lost the old root");
            let entry = Entry::Translate { tag: TAG, root: table.root(), levels };
            self.write(edu.id, entry)?;
            ensure!(reaches(edu, 0x1_0000, GRANTED), "{levels} levels: denied in between");
            self.forget(edu.id, Some(TAG))?;
            ensure!(reaches(edu, 0x1_0000, GRANTED), "{levels} levels: lost its memory");
            if depths == 0 {
                self.map(&mut table, BEYOND, OTHERS, 0x1000, READ_WRITE)?;
                let beyond = range(BEYOND, 0x1000)?;
                self.unit
                    .publish_pages(&mut self.memory, TAG, beyond)
                    .map_err(|error| format!("{error}"))?;
            }
            ensure!(reaches(edu, BEYOND, OTHERS), "{levels} levels: not what only they reach");
            depths += 1;
        }
        self.detach(edu, TAG)?;
        table.destroy(&mut self.memory);
        self.take();
        ensure!(depths > 0, "the unit has one depth");
        Ok(format!("3 levels and {depths} times deeper, in use"))
    }
}
