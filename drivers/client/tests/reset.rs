//! Function-level reset, over functions whose configuration space is given byte by byte.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected must stop"
)]

use std::io;
use std::time::Duration;

use iommu_client::{ConfigSpace, Device, Error, Quiesced, ResetError, function_level_reset};
use iommud_tests::model::{DEVICES, Model};

/// Header of an NVMe controller: ids, command (memory, bus master, no interrupt line), status with a list, class; cache
/// line and latency; two base addresses; ROM; the list's start at 0x40; interrupt line and pin.
const HEADER: [u8; 64] = [
    0x36, 0x1b, 0x10, 0x00, 0x06, 0x04, 0x10, 0x00, 0x02, 0x02, 0x08, 0x01, 0x10, 0x20, 0x00, 0x00,
    0x04, 0x00, 0x00, 0xfe, 0x01, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0xe0, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xf4, 0x1a, 0x00, 0x11,
    0x00, 0x00, 0x00, 0x00, 0x40, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0b, 0x01, 0x00, 0x00,
];

/// MSI-X, with 65 vectors in the first register.
const MSIX: &[u8] = &[0x11, 0x80, 0x40, 0x80, 0x00, 0x20, 0x00, 0x00, 0x00, 0x30, 0x00, 0x00];

/// PCI Express, version 2, an endpoint that can be reset; device control 0x595f.
const EXPRESS: &[u8] = &[0x10, 0x00, 0x02, 0x00, 0x00, 0x80, 0x00, 0x10, 0x5f, 0x59, 0x00, 0x00];

/// Advanced features: 6 bytes, pending transactions and reset.
const ADVANCED: &[u8] = &[0x13, 0x00, 0x06, 0x03, 0x00, 0x00];

/// Offsets of the control registers of `express` and `advanced`.
const EXPRESS_CONTROL: u8 = 0x88;
const ADVANCED_CONTROL: u8 = 0xe0;

/// What a test sees of a function.
#[derive(Clone)]
struct Function {
    space: [u8; 256],
    control: u8,
    /// Time in ms.
    now: u64,
    /// Transactions end at this time before a reset, and this long after one.
    busy: [u64; 2],
    /// From the reset to the first answer.
    silent: u64,
    resets: Vec<u64>,
    writes: Vec<(u8, u32)>,
    /// The write of this index is refused.
    refuse: Option<usize>,
}

impl Function {
    /// A function with this header and these capabilities, each at its offset.
    fn new(control: u8, capabilities: &[(usize, &[u8])]) -> Self {
        let mut space = [0; 256];
        space[..64].copy_from_slice(&HEADER);
        for (at, bytes) in capabilities {
            space[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let (resets, writes) = (Vec::new(), Vec::new());
        Self { space, control, now: 0, busy: [0, 0], silent: 0, resets, writes, refuse: None }
    }

    fn express() -> Self {
        let mut function = Self::new(EXPRESS_CONTROL, &[(0x40, MSIX), (0x80, EXPRESS)]);
        // Device control 2: a completion timeout of its own, and latency messages.
        function.space[0xa8..0xaa].copy_from_slice(&[0x06, 0x04]);
        function
    }

    fn advanced() -> Self {
        let mut function = Self::new(ADVANCED_CONTROL, &[(0xdc, ADVANCED)]);
        function.space[0x34] = 0xdc;
        function
    }

    fn word(&self, at: u8) -> u32 {
        let at = usize::from(at);
        u32::from_le_bytes(self.space[at..at + 4].try_into().unwrap())
    }

    fn is_pending(&self) -> bool {
        match self.resets.last() {
            None => self.now < self.busy[0],
            Some(reset) => self.now < reset + self.busy[1],
        }
    }

    fn reset(&mut self) {
        assert_eq!(self.space[4] & 4, 0, "reset with bus mastering on");
        assert!(!self.is_pending() || self.now >= 100, "reset with transactions pending");
        self.resets.push(self.now);
        for cleared in [4..6, 0xc..0xe, 0x10..0x28, 0x30..0x34, 0x3c..0x3d, 0x42..0x44] {
            self.space[cleared].fill(0);
        }
        if self.control == EXPRESS_CONTROL {
            self.space[0x88..0x8a].copy_from_slice(&[0x10, 0x28]);
            self.space[0xa8..0xaa].fill(0);
        }
    }

    fn fails(mut self, expected: &str) -> Self {
        let before = self.space;
        let error = function_level_reset(&mut self).unwrap_err();
        assert_eq!(format!("{error:?}"), expected);
        if expected != "NotEnded" {
            assert_eq!((self.space, &self.writes[..]), (before, &[][..]), "{expected}: it wrote");
        }
        self
    }
}

impl ConfigSpace for Function {
    fn read(&mut self, offset: u8) -> io::Result<u32> {
        assert_eq!(offset % 4, 0, "{offset:#x}");
        let silent = self.resets.last().map_or(0, |reset| {
            assert!(self.now >= reset + 100, "read {} ms after a reset", self.now - reset);
            reset + self.silent
        });
        if self.now < silent {
            return Ok(u32::MAX);
        }
        let pending = match offset == self.control {
            true if self.control == EXPRESS_CONTROL => u32::from(self.is_pending()) << 21,
            true => u32::from(self.is_pending()) << 8,
            false => 0,
        };
        Ok(self.word(offset) | pending)
    }

    fn write(&mut self, offset: u8, value: u32) -> io::Result<()> {
        assert_eq!(offset % 4, 0, "{offset:#x}");
        let early = self.resets.last().is_some_and(|reset| self.now < reset + self.silent.max(100));
        assert!(!early, "a write to a function that does not answer");
        if self.refuse == Some(self.writes.len()) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.writes.push((offset, value));
        let start = if self.control == EXPRESS_CONTROL { 1 << 15 } else { 1 };
        // The upper halves of command and control are status: ones clear. That of 0x0c starts a self-test.
        let half = offset == self.control || [0x04, 0x0c, 0xa8].contains(&offset);
        assert!(!half || value >> 16 == 0, "{value:#x} to {offset:#x}");
        let length = match offset {
            0x3c => 1,
            _ if half => 2,
            _ => 4,
        };
        let kept = if offset == self.control { value & !start } else { value };
        let bytes = &kept.to_le_bytes()[..length];
        self.space[usize::from(offset)..][..length].copy_from_slice(bytes);
        if offset == self.control && value & start != 0 {
            self.reset();
        }
        Ok(())
    }

    fn pause(&mut self, time: Duration) {
        self.now += u64::try_from(time.as_millis()).unwrap();
    }
}

/// All is as before, but for bus mastering and the vectors.
fn assert_back(function: &Function, before: &Function, what: &str) {
    let mut expected = before.space;
    expected[4] &= !4;
    if function.control == EXPRESS_CONTROL {
        expected[0x42..0x44].fill(0);
    }
    assert_eq!(function.space, expected, "{what}");
    assert_eq!(function.resets.len(), 1, "{what}");
    assert_eq!(function.writes.last().unwrap().0, 4, "{what}: the command register comes last");
}

#[test]
fn a_function_is_reset_and_its_header_comes_back() {
    for before in [Function::express(), Function::advanced()] {
        let mut function = before.clone();
        function_level_reset(&mut function).unwrap();
        assert_back(&function, &before, "reset");
        assert_eq!(function.now, 150);
        let first = function.writes[0];
        assert_eq!(first, (4, 0), "the function is quiet before anything else");
    }
}

/// The capability of version 1 has no second register.
#[test]
fn version_1_has_no_device_control_2() {
    let mut function = Function::express();
    function.space[0x82] = 1;
    function_level_reset(&mut function).unwrap();
    assert!(function.writes.iter().all(|(offset, _)| *offset != 0xa8));
    assert_eq!((function.resets.len(), function.space[0x88]), (1, 0x5f));
}

#[test]
fn what_is_pending_ends_first_or_has_had_its_time() {
    for before in [Function::express(), Function::advanced()] {
        for (busy, reset) in [(1, 10), (45, 50), (100, 100), (101, 100), (u64::MAX, 100)] {
            let mut function = before.clone();
            function.busy[0] = busy;
            function_level_reset(&mut function).unwrap();
            assert_eq!(function.resets, [reset], "busy for {busy} ms");
            assert_back(&function, &before, "pending");
        }
    }
}

#[test]
fn a_reset_that_does_not_end_is_an_error() {
    for before in [Function::express(), Function::advanced()] {
        for silent in [101, 150, 700, 1150] {
            let function = Function { silent, ..before.clone() };
            let mut slow = function.clone();
            function_level_reset(&mut slow).unwrap();
            assert_back(&slow, &before, &format!("silent for {silent} ms"));
            let mut busy = Function { silent: 0, busy: [0, silent], ..function };
            function_level_reset(&mut busy).unwrap();
            assert_back(&busy, &before, &format!("busy for {silent} ms"));
        }
        for silent in [1151, 5000, u64::MAX / 2] {
            for (silent, busy) in [(silent, 0), (0, silent)] {
                let function = Function { silent, busy: [0, busy], ..before.clone() };
                let ended = function.fails("NotEnded");
                assert_eq!(ended.now, 1150);
                // Nothing was written after the reset: no addresses, no bus mastering.
                assert_eq!(ended.writes.len(), 2);
                assert_eq!(ended.word(4) & 0xffff, 0);
            }
        }
    }
}

/// Vendor 1 stands for a function that is not ready (PCI Express Base Specification, section 2.3.2).
#[test]
fn another_function_that_answers_is_not_the_one_that_was_reset() {
    struct Other(Function);
    impl ConfigSpace for Other {
        fn read(&mut self, offset: u8) -> io::Result<u32> {
            let value = self.0.read(offset)?;
            Ok(if offset == 0 && !self.0.resets.is_empty() { 0xffff_0001 } else { value })
        }
        fn write(&mut self, offset: u8, value: u32) -> io::Result<()> {
            self.0.write(offset, value)
        }
        fn pause(&mut self, time: Duration) {
            self.0.pause(time);
        }
    }
    let mut other = Other(Function::express());
    assert!(matches!(function_level_reset(&mut other), Err(ResetError::NotEnded)));
}

#[test]
fn a_function_without_a_reset_is_left_alone() {
    let mut cases = vec![Function::new(0, &[(0x40, &[0x11, 0x00])])];
    let change = |function: Function, at: usize, value: u8| {
        let mut function = function;
        function.space[at] = value;
        function
    };
    // Not in device capabilities; no pending bit, or no reset, in the advanced features.
    cases.push(change(Function::express(), 0x87, 0xef));
    cases.push(change(Function::advanced(), 0xdf, 0x02));
    cases.push(change(Function::advanced(), 0xdf, 0x01));
    // A bridge: bit 15 of device control has another meaning there. And no list at all.
    cases.push(change(Function::express(), 0x0e, 0x01));
    cases.push(change(Function::express(), 0x06, 0x00));
    cases.push(change(Function::express(), 0x34, 0x00));
    for case in cases {
        case.fails("Unsupported");
    }
    // Function 0 of several is no bridge.
    function_level_reset(&mut change(Function::express(), 0x0e, 0x80)).unwrap();
    // The lowest two bits of a pointer are reserved.
    function_level_reset(&mut change(Function::express(), 0x41, 0x83)).unwrap();
    let mut gone = Function::express();
    gone.space.fill(0xff);
    gone.fails("Absent");
}

#[test]
fn a_malformed_list_is_refused() {
    let bad = |capabilities: &[(usize, &[u8])], first: u8, at: u8| {
        let mut function = Function::new(0, capabilities);
        function.space[0x34] = first;
        function.fails(&format!("BadCapabilities {{ offset: {at} }}"));
    };
    // Loops: of one, of two; the second is even, so it ends where it began.
    bad(&[(0x40, &[0x11, 0x40])], 0x40, 0x40);
    bad(&[(0x40, &[0x11, 0x80]), (0x80, &[0x05, 0x40])], 0x40, 0x40);
    // Into the header.
    bad(&[], 0x3c, 0x3c);
    bad(&[(0x40, &[0x11, 0x04])], 0x40, 0x04);
    // Past the end: device capabilities, device control, device control 2; control of the advanced features.
    bad(&[(0xfc, &[0x10, 0x00, 0x02, 0x00])], 0xfc, 0xfc);
    bad(&[(0xf8, &[0x10, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x10])], 0xf8, 0xf8);
    bad(&[(0xd8, &[0x10, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x10])], 0xd8, 0xd8);
    bad(&[(0xfc, &[0x13, 0x00, 0x06, 0x03])], 0xfc, 0xfc);
    // Too short for its control register.
    bad(&[(0xdc, &[0x13, 0x00, 0x05, 0x03])], 0xdc, 0xdc);
}

/// Any list ends the search, whatever its bytes.
#[test]
fn every_list_has_an_end() {
    let mut seed = 0x5eed_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed.to_le_bytes()[5]
    };
    let ids = [0x10, 0x13, 0x05, 0x11, 0x01];
    for _ in 0..20_000 {
        let mut function = Function::new(0, &[]);
        function.space[0x34] = next();
        for at in 0x40..256 {
            let byte = next();
            function.space[at] = if at % 4 == 0 { ids[usize::from(byte) % 5] } else { byte };
        }
        // The first write is refused: only the search matters here.
        function.refuse = Some(0);
        let ended = function_level_reset(&mut function);
        assert!(ended.is_err() && function.writes.is_empty());
    }
}

#[test]
fn a_write_that_fails_is_an_error_and_bus_mastering_stays_off() {
    let mut whole = Function::express();
    function_level_reset(&mut whole).unwrap();
    assert_eq!(whole.writes.len(), 14);
    for refuse in 0..whole.writes.len() {
        let mut function = Function { refuse: Some(refuse), ..Function::express() };
        let error = function_level_reset(&mut function).unwrap_err();
        assert!(matches!(error, ResetError::Io(_)), "{refuse}: {error}");
        let on = function.space[4] & 4 != 0;
        assert_eq!(on, refuse == 0, "{refuse}");
    }
}

/// A driver ends with its device attached. The next one resets the device before it attaches it, and only that one.
#[test]
fn what_an_earlier_driver_left_is_quiesced() {
    let model = Model::new();
    let connection = model.connection();
    let open = || Device::open(&connection, DEVICES[1]).unwrap();
    let mut function = Function::express();
    let device = open();
    assert_eq!(device.quiesce(&mut function).unwrap(), Quiesced::Already);
    assert!(function.writes.is_empty(), "a quiet device is not touched");
    let _permission = device.attach().unwrap();
    drop(device);
    let device = open();
    let mut never = Function { silent: 5000, ..Function::express() };
    let failed = device.quiesce(&mut never);
    assert!(matches!(failed, Err(Error::Reset(ResetError::NotEnded))));
    let mut without = Function::new(0, &[(0x40, &[0x11, 0x00])]);
    assert_eq!(device.quiesce(&mut without).unwrap(), Quiesced::NotReset);
    assert_eq!(device.quiesce(&mut function).unwrap(), Quiesced::Reset);
    assert_eq!(function.resets.len(), 1);
    let permission = device.attach().unwrap();
    assert_eq!(device.quiesce(&mut Function::express()).unwrap(), Quiesced::Already);
    device.detach(permission).unwrap();
}
