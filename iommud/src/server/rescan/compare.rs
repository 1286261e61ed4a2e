//! Compares a walk with the functions that are known.
//!
//! ```text
//! found, with another vendor or device     another device: gone
//! found, something else has changed        unclaimed and quiet: replaced; else kept as known until it is free
//! not found, but it answers                it stays: the walk could not describe it, or did not reach it
//! not found, and it does not answer        unclaimed and quiet: gone; else gone after a second such look
//! a bridge that is not found               it stays as long as any function behind it
//! ```
//!
//! A function reads all ones while it is reset, or asleep. So one look proves nothing about a driven device. Two
//! looks prove little more: policy remembers functions that were driven when they were removed, and blocks them when
//! they return.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use iommu_protocol::PciAddress;

use crate::hw::{BufferMemory, Unit};
use crate::server::Server;
use crate::topology::pci::PciFunction;

/// Functions by address.
type Found<'a> = BTreeMap<PciAddress, &'a PciFunction>;

impl<U: Unit, B: BufferMemory> Server<U, B> {
    /// The functions that are gone, or are to be replaced by those that were found. Records those to look for again,
    /// and those that keep their known description.
    pub(super) fn find_gone(&mut self, found: &[PciFunction]) -> Vec<PciAddress> {
        let found: Found<'_> = found.iter().map(|found| (found.address, found)).collect();
        let known: Vec<PciAddress> = self.registry.functions().collect();
        let absent = core::mem::take(&mut self.survey.absent);
        let mut replaced = BTreeSet::new();
        let mut gone = BTreeSet::new();
        for address in &known {
            match found.get(address) {
                Some(now) if self.is_replaced(now) => drop(replaced.insert(*address)),
                Some(_) => {}
                None if self.is_gone(*address, &absent) => drop(gone.insert(*address)),
                None => {}
            }
        }
        let (sure, bridges): (Vec<PciAddress>, Vec<PciAddress>) =
            gone.iter().copied().partition(|address| {
                self.behind(*address, &known).all(|behind| gone.contains(&behind))
            });
        // A bridge that stays for the functions behind it is removed with them.
        self.survey.absent.extend(bridges);
        replaced.into_iter().chain(sure).collect()
    }

    /// Whether the function found at an address replaces the one that is known there.
    fn is_replaced(&mut self, now: &PciFunction) -> bool {
        let Some(known) = self.registry.function(now.address) else { return false };
        if known.function == *now {
            return false;
        }
        // Isolation, bus numbers and class decide on groups and policy. They may change while the device is at work,
        // some of them by its own action: then it keeps its known description.
        let replaced =
            known.function.identity() != now.identity() || self.registry.is_at_rest(now.address);
        if !replaced {
            log::info!("{}: changed while it is in use: taken over when it is free", now.address);
            self.survey.kept.push(*now);
        }
        replaced
    }

    /// Whether a function that was not found is gone.
    fn is_gone(&mut self, address: PciAddress, absent: &BTreeSet<PciAddress>) -> bool {
        let discovery = self.survey.discovery.as_mut();
        if discovery.is_none_or(|discovery| discovery.answers(address)) {
            return false;
        }
        if absent.contains(&address) {
            return true;
        }
        self.survey.expect_back();
        if self.registry.is_at_rest(address) {
            return true;
        }
        self.survey.absent.insert(address);
        false
    }

    /// The known functions behind a bridge.
    fn behind<'a>(
        &self,
        bridge: PciAddress,
        known: &'a [PciAddress],
    ) -> impl Iterator<Item = PciAddress> + use<'a, U, B> {
        let buses = self.registry.function(bridge).and_then(|view| view.function.buses());
        // A function that is no bridge looks at none of them: there may be thousands of both.
        buses.into_iter().flat_map(move |buses| {
            let known = known.iter().copied();
            known.filter(move |other| {
                other.segment == bridge.segment && buses.contains(other.requester.bus())
            })
        })
    }

    /// Bridges that no longer match their known description, as they were found and as they are known. The group of a
    /// new function behind one would be wrong, so it stays denied until the bridge is free.
    pub(super) fn changing_bridges(&self) -> Vec<PciFunction> {
        let known = |now: &PciFunction| self.registry.function(now.address);
        let kept = self.survey.kept.iter();
        let both = kept.flat_map(|now| [Some(*now), known(now).map(|known| known.function)]);
        both.flatten().filter(|function| function.buses().is_some()).collect()
    }
}

/// Whether a function is behind a bridge, by the bus that it is on.
pub(super) fn is_behind(function: &PciFunction, bridge: &PciFunction) -> bool {
    bridge.address.segment == function.address.segment
        && bridge.buses().is_some_and(|buses| buses.contains(function.address.requester.bus()))
}
