//! Names of states. Two states with one name look the same to clients, devices and the scheme's texts, and their
//! units have the same caches and tables. Handles, frames and numbers of domains and groups depend only on the order
//! of creation. They are named by the object they belong to, or left out.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::ledger::{Ledger, Session};
use super::scene::Device;
use super::search::{Explorer, Path};
use super::subject::Subject;
use crate::machine::{Cached, Reach};

/// Memory and domains, named by the object they belong to.
struct Names {
    /// First byte and length of each piece of a buffer, and its number.
    memory: Vec<(u64, u64, u64)>,
    /// The owner of each domain, by unit and number.
    domains: BTreeMap<(usize, u16), Owner>,
}

/// The owner of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Owner {
    /// Policy's.
    Policy,
    /// Sessions; this is the first of them.
    Session(usize, Device),
    /// No device's entry points to it now.
    Nobody,
}

/// Returns the first of the sessions that share a domain, by client and device.
fn owner(ledger: &Ledger, session: &Session) -> (usize, Device) {
    let same = ledger.sessions.iter().filter(|other| other.domain == session.domain);
    same.map(|other| (other.client, other.device)).min().expect("the session itself")
}

impl Names {
    fn new<S: Subject>(explorer: &Explorer<S>, path: &Path) -> Self {
        let mut memory = Vec::new();
        for session in sorted(&path.ledger) {
            for (start, length) in session.buffers.iter().flat_map(|(_, segments)| segments) {
                let number = u64::try_from(memory.len()).expect("few pieces");
                memory.push((*start, *length, number));
            }
        }
        let mut domains = BTreeMap::new();
        for (device, reading) in path.reading.iter().enumerate() {
            let unit = explorer.scene.functions[device].unit;
            let (Some(unit), Some((domain, ..))) = (unit, reading.binding) else { continue };
            let driver = path.ledger.driver(device).map(|session| owner(&path.ledger, session));
            let owner = driver.map_or(Owner::Policy, |(client, at)| Owner::Session(client, at));
            domains.insert((unit, domain), owner);
        }
        Self { memory, domains }
    }

    /// Returns a piece of a buffer and the offset in it, or the address itself.
    fn memory(&self, physical: u64) -> (u64, u64) {
        let holds =
            |(start, length, _): &&(u64, u64, u64)| (*start..start + length).contains(&physical);
        let piece = self.memory.iter().find(holds);
        piece.map_or((u64::MAX, physical), |(start, _, number)| (*number, physical - start))
    }

    fn domain(&self, unit: usize, domain: u16) -> Owner {
        self.domains.get(&(unit, domain)).copied().unwrap_or(Owner::Nobody)
    }
}

fn sorted(ledger: &Ledger) -> Vec<&Session> {
    let mut sessions: Vec<&Session> = ledger.sessions.iter().collect();
    sessions.sort_unstable_by_key(|session| (session.client, session.device));
    sessions
}

/// Returns the name of the present state of the subject and its machine.
pub fn name<S: Subject>(explorer: &mut Explorer<S>, path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let names = Names::new(explorer, path);
    clients(&path.ledger, &mut hasher);
    for reading in &path.reading {
        reading.binding.is_some().hash(&mut hasher);
        for Reach { iova, last, physical, read, write } in &reading.reach {
            (iova, last, names.memory(*physical), read, write).hash(&mut hasher);
        }
    }
    let units = 0..explorer.scene.units.len();
    for unit in units {
        let machine = explorer.subject.machine();
        let mut tables = machine.tables_of(unit);
        // Drops the domain's number: the entries already show which domain a table belongs to.
        let domain = |what: &String| what.find(" of domain").unwrap_or(what.len());
        tables.iter_mut().for_each(|what| what.truncate(domain(what)));
        tables.sort_unstable();
        tables.hash(&mut hasher);
        caches(&names, unit, machine.cached(unit)).hash(&mut hasher);
    }
    explorer.subject.tells(&path.ledger).hash(&mut hasher);
    hasher.finish()
}

/// Hashes the clients' view of the state.
fn clients(ledger: &Ledger, hasher: &mut DefaultHasher) {
    (&ledger.units, &ledger.enabled, &ledger.troubled).hash(hasher);
    let generations = ledger.ids.iter().map(|ids| ids.map(|(_, generation)| generation));
    (&ledger.functions, &ledger.alive, generations.collect::<Vec<_>>()).hash(hasher);
    for claim in &ledger.waiting {
        (claim.client, claim.device).hash(hasher);
    }
    for session in sorted(ledger) {
        (session.client, session.device, owner(ledger, session)).hash(hasher);
        (session.attached, session.orphan, session.lost).hash(hasher);
        for (slot, memory) in &session.buffers {
            let lengths: Vec<u64> = memory.iter().map(|(_, length)| *length).collect();
            (slot, lengths).hash(hasher);
        }
        for mapping in &session.mappings {
            (mapping.iova, mapping.slot).hash(hasher);
        }
    }
}

/// Describes the items that a unit has cached, in a fixed order.
fn caches(names: &Names, unit: usize, cached: Vec<Cached>) -> Vec<String> {
    let word = |cached: Cached| match cached {
        Cached::Entry { source, domain } => {
            format!("{source} {:?}", domain.map(|domain| names.domain(unit, domain)))
        }
        Cached::Page { domain, bits, page, physical } => {
            format!("{:?} {bits} {page} {:?}", names.domain(unit, domain), names.memory(physical))
        }
        Cached::Table { domain, bits, page } => {
            format!("{:?} {bits} {page} table", names.domain(unit, domain))
        }
        Cached::Absent { domain, bits, page } => {
            format!("{:?} {bits} {page} absent", names.domain(unit, domain))
        }
    };
    let mut words: Vec<String> = cached.into_iter().map(word).collect();
    words.sort_unstable();
    words
}
