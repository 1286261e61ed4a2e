//! What may come from outside, each kind with what must hold whatever the bytes. The same functions are run
//! by the fuzzer (`tests/fuzz`), by property tests, and over the inputs kept in `data/fuzz`.

pub mod files;
pub mod pci;
pub mod protocol;
pub mod tables;
pub mod units;

/// A target: its name, and a function that panics when something does not hold.
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

/// Bytes taken one after the other; zeros when there are no more.
#[derive(Clone, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    /// The next `N`.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let count = N.min(self.0.len());
        let (now, later) = self.0.split_at(count);
        out[..count].copy_from_slice(now);
        self.0 = later;
        out
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// Whether there are none left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
