//! What the program is given: open descriptors, and the variables that name them.

use std::ffi::OsString;

use iommu_client::handover::{INTERRUPT_VARIABLE, InterruptHandover, SESSION_VARIABLE};

/// The environment of the program: this process's, in which only `session` and `interrupt` are handed on. A variable that
/// this process found is never passed on, since its descriptors belong to another session.
pub(crate) fn environment(
    ours: impl IntoIterator<Item = (OsString, OsString)>,
    session: Option<u32>,
    interrupt: Option<InterruptHandover>,
) -> Vec<(OsString, OsString)> {
    let own = |name: &OsString| name == SESSION_VARIABLE || name == INTERRUPT_VARIABLE;
    let mut all: Vec<_> = ours.into_iter().filter(|(name, _)| !own(name)).collect();
    let session = session.map(|number| (SESSION_VARIABLE, number.to_string()));
    let interrupt = interrupt.map(|vector| (INTERRUPT_VARIABLE, vector.to_string()));
    let handed = session.into_iter().chain(interrupt);
    all.extend(handed.map(|(name, value)| (name.into(), value.into())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(words: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        words.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn the_variables_name_what_is_handed_on_and_nothing_else() {
        let ours = pairs(&[
            ("PCID_CLIENT_CHANNEL", "5"),
            ("IOMMU_SESSION", "3"),
            ("IOMMU_INTERRUPT", "1:2:3:4:55"),
            ("PATH", "/bin"),
        ]);
        let kept = [("PCID_CLIENT_CHANNEL", "5"), ("PATH", "/bin")];
        assert_eq!(environment(ours.clone(), None, None), pairs(&kept));
        let vector = InterruptHandover { counter: 7, queue: 8, timer: 9, processor: 2, vector: 48 };
        let handed = [("IOMMU_SESSION", "6"), ("IOMMU_INTERRUPT", "7:8:9:2:48")];
        let expected = pairs(&[&kept[..], &handed[..]].concat());
        assert_eq!(environment(ours, Some(6), Some(vector)), expected);
    }
}
