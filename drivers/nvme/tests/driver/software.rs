//! An NVMe controller in software, with its own constants (NVM Express Base 2.0c, sections 3.1.3, 3.3.3, 4.1.1, 4.1.2,
//! 5.1, 5.4, 5.5, 5.17, 5.27.1.5). Its DMA goes through the unit of a model. It acts when a doorbell is rung.

mod admin;
mod data;

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use iommu_client::PciAddress;
use iommud_tests::model::Model;
use nvme::Registers;

/// Bytes of a block, by namespace: two of different formats.
pub(crate) const BLOCK: [usize; 2] = [512, 4096];

/// The behaviour of the controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manner {
    /// It keeps I/O commands until [`Software::let_go`].
    pub(crate) slow: bool,
    /// It completes the last of its commands first.
    pub(crate) backwards: bool,
    /// It completes requests that were not sent.
    pub(crate) liar: bool,
    /// It answers admin commands that were not sent.
    pub(crate) confused: bool,
    /// It allows no more than this many entries in a queue; 0 for 64.
    pub(crate) entries: u64,
    /// It has no more than this many queues of requests; 0 for 4.
    pub(crate) queues: u32,
    /// It aborts commands on request.
    pub(crate) aborts: bool,
    /// It fails when it gets a request (CSTS.CFS).
    pub(crate) fails: bool,
    /// It ignores this many doorbells of requests.
    pub(crate) deaf: u32,
    /// After its end is requested, it goes on with its commands, and reports that it has not stopped (CSTS.RDY),
    /// until its status was read this many times; `u32::MAX` for ever.
    pub(crate) lingers: u32,
    /// The longest transfer, as a power of two of pages (MDTS), in place of 10.
    pub(crate) transfer: Option<u8>,
    /// Blocks of the first namespace, in place of 4096.
    pub(crate) blocks: Option<u64>,
    /// It fails when the first page of a request's data is moved (CSTS.CFS).
    pub(crate) cuts: bool,
    /// It completes each request as aborted, without a request to abort it.
    pub(crate) shirks: bool,
    /// It supports no queues of requests.
    pub(crate) poor: bool,
    /// Its scatter-gather lists (SGLS).
    pub(crate) sgls: u32,
}

#[derive(Default)]
struct Pair {
    submission: (u64, u32),
    completion: (u64, u32),
    head: u32,
    tail: u32,
    /// Place of the next completion, and its phase.
    put: (u32, bool),
    interrupts: bool,
}

struct State {
    model: Model,
    device: PciAddress,
    manner: Manner,
    configuration: u32,
    admin: [u64; 3],
    pairs: BTreeMap<u32, Pair>,
    /// Commands that it has taken, each with its queue.
    pending: VecDeque<(u32, [u32; 16])>,
    failed: bool,
    /// Reads of its status until it has stopped.
    stopping: u32,
    /// Queues of requests that it grants.
    granted: u32,
    /// Number of requests in each queue, from the first queue on.
    told: BTreeMap<u32, u32>,
    interrupts: u32,
    aborted: u32,
    disks: [Vec<u8>; 2],
    flushes: u32,
    /// Every data address that it got, page by page.
    pages: Vec<u64>,
    /// Every command of a request.
    commands: Vec<[u32; 16]>,
    denied: u32,
    resets: u32,
}

/// A handle on the controller; clones share it.
#[derive(Clone)]
pub(crate) struct Software(Rc<RefCell<State>>);

impl std::fmt::Debug for Software {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.state().manner.fmt(f)
    }
}

impl Software {
    pub(crate) fn new(model: &Model, device: PciAddress, manner: Manner) -> Self {
        Self(Rc::new(RefCell::new(State {
            model: model.clone(),
            device,
            manner,
            configuration: 0,
            admin: [0; 3],
            pairs: BTreeMap::new(),
            pending: VecDeque::new(),
            failed: false,
            stopping: 0,
            granted: 0,
            told: BTreeMap::new(),
            interrupts: 0,
            aborted: 0,
            disks: [vec![0; 4096 * BLOCK[0]], vec![0; 4096 * BLOCK[1]]],
            flushes: 0,
            pages: Vec::new(),
            commands: Vec::new(),
            denied: 0,
            resets: 0,
        })))
    }

    fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    pub(crate) fn set(&self, manner: Manner) {
        self.state().manner = manner;
    }

    /// Carries out the commands that were kept.
    pub(crate) fn let_go(&self) {
        self.state().carry_out();
    }

    pub(crate) fn kept(&self) -> usize {
        self.state().pending.len()
    }

    /// Bytes of a namespace, from 1.
    pub(crate) fn disk(&self, namespace: usize, from: usize, length: usize) -> Vec<u8> {
        self.state().disks[namespace - 1][from..from + length].to_vec()
    }

    pub(crate) fn flushes(&self) -> u32 {
        self.state().flushes
    }

    pub(crate) fn take_pages(&self) -> Vec<u64> {
        std::mem::take(&mut self.state().pages)
    }

    /// The bytes of each command of a request since the last call, without its identifier.
    pub(crate) fn take_commands(&self) -> Vec<Vec<u8>> {
        let commands = std::mem::take(&mut self.state().commands);
        let bytes = commands.iter().map(|words| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes[2..4].fill(0);
            bytes
        });
        bytes.collect()
    }

    /// Number of requests in each queue, from the first queue on.
    pub(crate) fn told(&self) -> Vec<u32> {
        self.state().told.values().copied().collect()
    }

    /// Number of aborts that were requested.
    pub(crate) fn aborted(&self) -> u32 {
        self.state().aborted
    }

    /// Interrupts since the last call.
    pub(crate) fn take_interrupts(&self) -> u32 {
        std::mem::take(&mut self.state().interrupts)
    }

    /// Number of denied DMA accesses, and of resets.
    pub(crate) fn troubles(&self) -> (u32, u32) {
        let state = self.state();
        (state.denied, state.resets)
    }
}

impl Registers for Software {
    fn read32(&self, offset: u64) -> Option<u32> {
        let mut state = self.state();
        match offset {
            0x14 => Some(state.configuration),
            0x1c => Some(state.ready() | u32::from(state.failed) << 1),
            _ => None,
        }
    }

    fn read64(&self, offset: u64) -> Option<u64> {
        let entries = match self.state().manner.entries {
            0 => 64,
            some => some,
        };
        // MQES, CQR, TO of 500 ms, DSTRD of 8 bytes, NVM command set.
        (offset == 0).then_some((entries - 1) | 1 << 16 | 1 << 24 | 1 << 32 | 1 << 37)
    }

    fn write32(&mut self, offset: u64, value: u32) -> Option<()> {
        let mut state = self.state();
        match offset {
            0x14 => state.configure(value),
            0x24 => state.admin[0] = value.into(),
            0x1000.. => {
                assert_eq!(state.configuration & 1, 1, "a doorbell of a disabled controller");
                let index = u32::try_from((offset - 0x1000) / 8).unwrap();
                if index % 2 == 0 {
                    state.rung(index / 2, value);
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn write64(&mut self, offset: u64, value: u64) -> Option<()> {
        match offset {
            0x28 => self.state().admin[1] = value,
            0x30 => self.state().admin[2] = value,
            _ => return None,
        }
        Some(())
    }
}

const SUCCESS: u32 = 0;
const INVALID_FIELD: u32 = 0x02;
const TRANSFER_ERROR: u32 = 0x04;
const ABORTED: u32 = 0x07;
const OUT_OF_RANGE: u32 = 0x80;
const PRP_OFFSET: u32 = 0x13;
const SGL_LENGTH: u32 = 0x0f;

impl State {
    /// The ready bit of the status.
    fn ready(&mut self) -> u32 {
        if self.stopping > 0 && self.stopping < u32::MAX {
            self.stopping -= 1;
            if self.stopping == 0 {
                self.carry_out();
                self.stop();
                return 0;
            }
        }
        self.configuration & 1 | u32::from(self.stopping > 0)
    }

    fn stop(&mut self) {
        self.pairs.clear();
        self.pending.clear();
        (self.failed, self.granted) = (false, 0);
    }

    fn configure(&mut self, value: u32) {
        if value & 1 == 0 {
            self.resets += self.configuration & 1;
            if self.configuration & 1 == 1 {
                self.stopping = self.manner.lingers;
            }
            if self.stopping == 0 {
                self.stop();
            }
        } else {
            assert_eq!(self.stopping, 0, "started before it has stopped");
            assert_eq!(value >> 16 & 0xff, 0x46, "entry sizes");
            let [attributes, submission, completion] = self.admin;
            let sizes = u32::try_from(attributes).unwrap();
            let pair = Pair {
                submission: (submission, (sizes & 0xfff) + 1),
                completion: (completion, (sizes >> 16 & 0xfff) + 1),
                put: (0, true),
                ..Pair::default()
            };
            self.pairs.insert(0, pair);
        }
        self.configuration = value;
    }

    fn read(&mut self, iova: u64, length: usize) -> Option<Vec<u8>> {
        let read = self.model.device_read(self.device, iova, length).ok();
        self.denied += u32::from(read.is_none());
        read
    }

    fn write(&mut self, iova: u64, bytes: &[u8]) -> Option<()> {
        let written = self.model.device_write(self.device, iova, bytes).ok();
        self.denied += u32::from(written.is_none());
        written
    }

    fn rung(&mut self, queue: u32, tail: u32) {
        let (base, entries) = self.pairs[&queue].submission;
        assert!(tail < entries, "a tail outside of the queue");
        self.pairs.get_mut(&queue).unwrap().tail = tail;
        if queue > 0 {
            *self.told.entry(queue).or_default() += 1;
            self.failed |= self.manner.fails;
            if let Some(left) = self.manner.deaf.checked_sub(1) {
                self.manner.deaf = left;
                return;
            }
        }
        while self.pairs[&queue].head != tail && !self.failed {
            let head = self.pairs[&queue].head;
            let Some(bytes) = self.read(base + u64::from(head) * 64, 64) else { return };
            let mut words = [0; 16];
            for (word, bytes) in words.iter_mut().zip(bytes.chunks(4)) {
                *word = u32::from_le_bytes(bytes.try_into().unwrap());
            }
            self.pairs.get_mut(&queue).unwrap().head = (head + 1) % entries;
            if queue == 0 {
                let (status, result) = self.administer(&words);
                if self.manner.confused {
                    forge(&mut words);
                }
                self.complete(0, &words, status, result);
            } else {
                self.pending.push_back((queue, words));
            }
        }
        if !self.manner.slow {
            self.carry_out();
        }
    }

    fn carry_out(&mut self) {
        loop {
            let next = match self.manner.backwards {
                true => self.pending.pop_back(),
                false => self.pending.pop_front(),
            };
            let Some((queue, mut words)) = next.filter(|_| !self.failed) else { return };
            let status = if self.manner.shirks { ABORTED } else { self.transfer(&words) };
            if self.failed {
                return;
            }
            if self.manner.liar {
                forge(&mut words);
            }
            self.complete(queue, &words, status, 0);
        }
    }

    fn complete(&mut self, queue: u32, words: &[u32; 16], status: u32, result: u32) {
        let pair = self.pairs.get_mut(&queue).unwrap();
        let (base, entries) = pair.completion;
        let (at, phase) = pair.put;
        let head = pair.head;
        pair.put = if at + 1 < entries { (at + 1, phase) } else { (0, !phase) };
        self.interrupts += u32::from(pair.interrupts);
        let last = status << 17 | u32::from(phase) << 16 | words[0] >> 16;
        let entry = [result, 0, queue << 16 | head, last];
        let bytes: Vec<u8> = entry.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(base + u64::from(at) * 16, &bytes);
    }
}

/// Turns a command into one that was not sent.
fn forge(words: &mut [u32; 16]) {
    words[0] = words[0] & 0xffff | 0x7777 << 16;
}

fn address(words: &[u32; 16], at: usize) -> u64 {
    u64::from(words[at]) | u64::from(words[at + 1]) << 32
}
