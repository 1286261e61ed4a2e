//! A book of facts that is compared with the registry.

use std::collections::BTreeMap;

use crate::policy::{FactBook, MappingFact, ObjectFact, Registry, SessionFact, SlotFact};

/// Facts by cell. A number is not given twice.
#[derive(Debug, Default)]
pub(in crate::policy::tests) struct Book {
    cells: BTreeMap<u32, ObjectFact>,
    next: u32,
}

impl FactBook for Book {
    fn enter(&mut self, fact: &ObjectFact) -> Option<u32> {
        self.next += 1;
        assert_eq!(self.cells.insert(self.next, *fact), None);
        Some(self.next)
    }

    fn change(&mut self, cell: u32, fact: &ObjectFact) {
        let was = self.cells.insert(cell, *fact);
        assert!(was.is_some(), "a cell that is free: {fact:?}");
    }

    fn remove(&mut self, cell: u32) {
        assert!(self.cells.remove(&cell).is_some(), "cell {cell} is free");
    }
}

impl Book {
    /// Compares the facts with the sessions, slots and mappings of a registry.
    pub(super) fn check(&self, registry: &Registry) {
        let mut expected: Vec<String> =
            all(registry).iter().map(|fact| format!("{fact:?}")).collect();
        let mut found: Vec<String> = self.cells.values().map(|fact| format!("{fact:?}")).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
    }
}

/// What there is in a registry.
fn all(registry: &Registry) -> Vec<ObjectFact> {
    let state = &registry.state;
    let mut facts = Vec::new();
    for (number, session) in state.sessions.iter() {
        let view = registry.session(crate::policy::SessionId(number)).unwrap();
        let session_fact = SessionFact {
            session: crate::policy::SessionId(number),
            client: view.client,
            device: view.address,
            attached: view.attached,
        };
        facts.push(ObjectFact::Session(session_fact));
        let domain = session.domain.and_then(|domain| state.domains.get(domain.0));
        for number in session.slots.iter().flatten().copied() {
            let record = state.slots.get(number).unwrap();
            facts.push(ObjectFact::Slot(SlotFact {
                record: number,
                session: record.session,
                slot: record.number,
                buffer: record.buffer,
                length: record.length,
            }));
            let mappings = domain.into_iter().flat_map(|of| of.mappings.list(&record.mappings));
            facts.extend(mappings.map(|(_, mapping)| {
                ObjectFact::Mapping(MappingFact {
                    record: mapping.slot,
                    range: mapping.range,
                    offset: mapping.offset,
                    access: mapping.access,
                    grant: mapping.grant,
                    list: mapping.list,
                })
            }));
        }
    }
    facts
}
