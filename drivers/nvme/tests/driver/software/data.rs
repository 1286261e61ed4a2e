//! Requests: data between the disks and memory.

use super::{
    BLOCK, INVALID_FIELD, OUT_OF_RANGE, PRP_OFFSET, SGL_LENGTH, SUCCESS, State, TRANSFER_ERROR,
    address,
};

impl State {
    pub(super) fn transfer(&mut self, words: &[u32; 16]) -> u32 {
        let opcode = words[0] & 0xff;
        self.commands.push(*words);
        if opcode == 0 {
            self.flushes += 1;
            return SUCCESS;
        }
        let disk = usize::try_from(words[1]).unwrap() - 1;
        let first = usize::try_from(address(words, 10)).unwrap();
        let count = usize::try_from(words[12] & 0xffff).unwrap() + 1;
        let (from, length) = (first * BLOCK[disk], count * BLOCK[disk]);
        if from + length > self.disks[disk].len() {
            return OUT_OF_RANGE;
        }
        let (first, second) = (address(words, 6), address(words, 8));
        let pages = match words[0] >> 14 & 3 {
            0 => self.pages_of(first, second, length),
            1 if matches!(self.manner.sgls & 3, 1 | 2) => Self::block_of(first, second, length),
            _ => Err(INVALID_FIELD),
        };
        let pages = match pages {
            Ok(pages) => pages,
            Err(status) => return status,
        };
        self.pages.extend(pages.iter().map(|(iova, _)| iova));
        let mut at = from;
        for (iova, bytes) in pages {
            let moved = if opcode == 1 {
                self.read(iova, bytes)
                    .map(|data| self.disks[disk][at..at + bytes].copy_from_slice(&data))
            } else {
                let data = self.disks[disk][at..at + bytes].to_vec();
                self.write(iova, &data)
            };
            if moved.is_none() {
                return TRANSFER_ERROR;
            }
            at += bytes;
            if self.manner.cuts {
                self.failed = true;
                break;
            }
        }
        SUCCESS
    }

    /// The range of a data block (4.1.2): its length is in the low half of the second word, its type, 0, in the highest
    /// bits.
    fn block_of(at: u64, rest: u64, length: usize) -> Result<Vec<(u64, usize)>, u32> {
        assert_eq!(rest >> 32, 0, "reserved, a subtype, or a type that the driver does not use");
        let bytes = usize::try_from(rest).unwrap();
        if bytes == length { Ok(vec![(at, bytes)]) } else { Err(SGL_LENGTH) }
    }

    /// The pages that two addresses describe (4.1.1).
    fn pages_of(&mut self, prp1: u64, prp2: u64, length: usize) -> Result<Vec<(u64, usize)>, u32> {
        let room = 4096 - usize::try_from(prp1 % 4096).unwrap();
        let mut pages = vec![(prp1, length.min(room))];
        let mut left = length.saturating_sub(room);
        if left == 0 {
            return Ok(pages);
        }
        if left <= 4096 {
            return if prp2.is_multiple_of(4096) {
                pages.push((prp2, left));
                Ok(pages)
            } else {
                Err(PRP_OFFSET)
            };
        }
        let mut list = prp2;
        while left > 0 {
            let entry =
                u64::from_le_bytes(self.read(list, 8).ok_or(TRANSFER_ERROR)?.try_into().unwrap());
            // Only the first list may begin inside a page: every entry is a page, of data or of entries.
            if !entry.is_multiple_of(4096) {
                return Err(PRP_OFFSET);
            }
            if list % 4096 == 4088 && left > 4096 {
                list = entry;
                continue;
            }
            pages.push((entry, left.min(4096)));
            left = left.saturating_sub(4096);
            list += 8;
        }
        Ok(pages)
    }
}
