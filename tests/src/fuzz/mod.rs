//! Kinds of input from outside, each with properties that hold for any bytes. The same functions run in the fuzzer
//! (`tests/fuzz`), in property tests, and over the inputs kept in `data/fuzz`.

pub mod files;
pub mod pci;
pub mod protocol;
pub mod tables;
pub mod units;

/// A target: its name, and a function that panics when a property fails.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 9] = [
    ("dmar", tables::dmar),
    ("ivrs", tables::ivrs),
    ("decode", files::decode),
    ("policy", files::policy),
    ("protocol", protocol::messages),
    ("paths", protocol::paths),
    ("pci", pci::walk),
    ("vtd", units::vtd),
    ("amdvi", units::amdvi),
];

/// Bytes taken one after the other; zeros after the end.
#[derive(Clone, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    /// Takes the next `N` bytes.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let count = N.min(self.0.len());
        let (now, later) = self.0.split_at(count);
        out[..count].copy_from_slice(now);
        self.0 = later;
        out
    }

    /// Takes the next byte.
    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// Whether no bytes are left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
