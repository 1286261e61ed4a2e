//! Configuration space.

use std::collections::{BTreeMap, BTreeSet};

use iommu_protocol::ids::{PciAddress, RequesterId};
use iommud::topology::alias::aliases;
use iommud::topology::firmware::Firmware;
use iommud::topology::groups::partition;
use iommud::topology::pci::{ConfigSpace, FunctionKind, PciFunction};
use iommud::topology::scope::Scopes;
use iommud::topology::table::FunctionTable;
use iommud::topology::walk::{Roots, walk as walk_buses};

/// Bytes of one function: requester id, header and capabilities, extended capabilities.
const FUNCTION: usize = 2 + 128 + 64;

/// Functions whose registers are the bytes of the input. Extended capabilities repeat every 64 bytes.
struct Functions<'a>(BTreeMap<u16, &'a [u8]>);

impl ConfigSpace for Functions<'_> {
    fn read(&mut self, address: PciAddress, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 4096, "offset {offset:#x}");
        let bytes = self.0.get(&address.requester.0).filter(|_| address.segment == 0);
        let offset = usize::from(offset);
        let at = if offset < 128 { offset } else { 128 + offset % 64 };
        let word = bytes.and_then(|bytes| bytes.get(at..at + 4));
        word.map_or(u32::MAX, |word| u32::from_le_bytes(word.try_into().unwrap()))
    }
}

/// The walk ends and finds each function once. Groups and units do not depend on the order of discovery.
pub fn walk(data: &[u8]) {
    let functions = data.chunks_exact(FUNCTION).take(64);
    let map =
        functions.map(|bytes| (u16::from_le_bytes([bytes[0], bytes[1]]), &bytes[2..])).collect();
    let mut config = Functions(map);
    let known = walk_buses(&mut config, Roots::Known(&[(0, 0)]));
    let all = walk_buses(&mut config, Roots::All(&[0]));
    for found in [known, all] {
        each_once(&found, &config);
        let groups = groups(found.iter().copied());
        assert_eq!(groups, self::groups(found.iter().rev().copied()), "order changes the groups");
        let members: Vec<PciAddress> = groups.iter().flatten().copied().collect();
        let distinct: BTreeSet<PciAddress> = members.iter().copied().collect();
        assert_eq!((members.len(), distinct.len()), (found.len(), found.len()));
    }
}

fn each_once(found: &[PciFunction], config: &Functions<'_>) {
    let distinct: BTreeSet<PciAddress> = found.iter().map(|function| function.address).collect();
    assert_eq!(distinct.len(), found.len());
    // Only a virtual function is found without responding itself.
    let silent = |function: &&PciFunction| !config.0.contains_key(&function.address.requester.0);
    for function in found.iter().filter(silent) {
        let endpoint =
            matches!(function.kind, FunctionKind::Endpoint | FunctionKind::RootComplexEndpoint);
        assert!(endpoint && function.multifunction, "{function:?}");
    }
}

fn groups(functions: impl Iterator<Item = PciFunction>) -> BTreeSet<Vec<PciAddress>> {
    let mut table = FunctionTable::default();
    functions.for_each(|function| {
        table.insert(function);
    });
    let firmware = Firmware::default();
    let scopes = Scopes::new(&firmware, table.view());
    for function in table.iter() {
        assert_eq!(scopes.unit(&firmware, function), None);
        let own = function.address.requester;
        let ids: Vec<RequesterId> = aliases(table.view(), None, function).with(own).collect();
        assert!(ids.contains(&function.address.requester) || !ids.is_empty());
    }
    partition(&table)
        .into_iter()
        .map(|mut group| {
            group.sort();
            group
        })
        .collect()
}
