//! Admin commands.

use super::{ABORTED, BLOCK, INVALID_FIELD, Pair, SUCCESS, State, TRANSFER_ERROR, address};

impl State {
    /// Ends a command that was not carried out. Returns the first word of the completion (5.1).
    fn abort(&mut self, queue: u32, identifier: u32) -> u32 {
        self.aborted += 1;
        let wanted = |(of, words): &(u32, [u32; 16])| *of == queue && words[0] >> 16 == identifier;
        match self.pending.iter().position(wanted) {
            Some(at) if self.manner.aborts => {
                let (queue, words) = self.pending.remove(at).unwrap();
                self.complete(queue, &words, ABORTED, 0);
                0
            }
            _ => 1,
        }
    }

    /// The status of an admin command, and the first word of its completion.
    pub(super) fn administer(&mut self, words: &[u32; 16]) -> (u32, u32) {
        match words[0] & 0xff {
            0x08 => (SUCCESS, self.abort(words[10] & 0xffff, words[10] >> 16)),
            // Number of queues. It is requested before there is one.
            0x09 => {
                assert_eq!((words[10], self.pairs.len()), (7, 1));
                let most = if self.manner.queues == 0 { 4 } else { self.manner.queues };
                let asked = (words[11] & 0xffff).min(words[11] >> 16) + 1;
                self.granted = asked.min(most);
                // There are more completion queues than submission queues: the smaller number counts.
                (SUCCESS, (most + 2) << 16 | (most - 1))
            }
            _ => (self.administer_more(words), 0),
        }
    }

    fn administer_more(&mut self, words: &[u32; 16]) -> u32 {
        let prp1 = address(words, 6);
        let (size, number) = ((words[10] >> 16) + 1, words[10] & 0xffff);
        match words[0] & 0xff {
            0x05 if self.manner.poor => INVALID_FIELD,
            0x05 => {
                assert!((1..=self.granted).contains(&number), "queue {number}");
                assert_eq!((words[11] >> 16, words[11] & 1), (0, 1), "vector 0, contiguous");
                let interrupts = words[11] & 2 != 0;
                let completion = (prp1, size);
                let pair = Pair { completion, put: (0, true), interrupts, ..Pair::default() };
                assert!(self.pairs.insert(number, pair).is_none(), "a queue twice");
                SUCCESS
            }
            0x01 => {
                assert_eq!(words[11], number << 16 | 1);
                let pair = self.pairs.get_mut(&number).expect("the completion queue first");
                pair.submission = (prp1, size);
                SUCCESS
            }
            0x06 => {
                let mut page = vec![0; 4096];
                match (words[10] & 0xff, words[1]) {
                    (0, id @ (1 | 2)) => {
                        let block = BLOCK[usize::try_from(id).unwrap() - 1];
                        let blocks = self.manner.blocks.filter(|_| id == 1).unwrap_or(4096);
                        page[..8].copy_from_slice(&blocks.to_le_bytes());
                        // The second format of two.
                        page[26] = 1;
                        page[134] = u8::try_from(block.trailing_zeros()).unwrap();
                    }
                    (1, _) => {
                        page[4..24].copy_from_slice(b"SW-0001             ");
                        page[24..64].copy_from_slice(format!("{:40}", "in software").as_bytes());
                        page[64..72].copy_from_slice(b"1.0     ");
                        page[536..540].copy_from_slice(&self.manner.sgls.to_le_bytes());
                        page[77] = self.manner.transfer.unwrap_or(10); // 4 MiB
                    }
                    (2, _) => {
                        page[0] = 1;
                        page[4] = 2;
                    }
                    _ => return INVALID_FIELD,
                }
                self.write(prp1, &page).map_or(TRANSFER_ERROR, |()| SUCCESS)
            }
            _ => INVALID_FIELD,
        }
    }
}
