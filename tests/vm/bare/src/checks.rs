//! The checks of the register-level suite, fixed in advance: one that does not report counts as failed.
//! `xtask` compiles this file too.

/// Titles; the first is number 1.
pub(crate) const CHECKS: [&str; 3] = [
    "64-bit mode: exceptions and interrupts have stacks of their own",
    "edu copies memory both ways with translation off",
    "an interrupt of a device arrives exactly once",
];
