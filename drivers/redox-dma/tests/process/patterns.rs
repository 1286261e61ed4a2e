//! The ways in which drivers use this memory, each with a device in software that follows the addresses it is given.

pub(crate) mod ahci;
pub(crate) mod e1000;
pub(crate) mod nvme;
pub(crate) mod virtio;
pub(crate) mod xhci;
