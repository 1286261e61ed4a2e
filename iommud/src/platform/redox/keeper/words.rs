//! The messages of the holder to the keeper: lines of words.

use iommu_protocol::ids::PciAddress;

use crate::addr::{PhysAddr, PhysRange};
use crate::topology::tags::TagRecord;

/// First words of lines. [`TOLD`]: the server acknowledged that its memory is mapped. [`UNTOLD`]: it could not be
/// notified.
pub(super) const TOLD: &str = "held";
pub(super) const UNTOLD: &str = "unheld";

/// [`RANGES`], [`NOTES`], [`TAGS`]: ranges of the memory, and the functions and tags that are noted in it. [`GO`]:
/// the server lets the memory of earlier servers go. [`STAY`]: a unit may still use that memory. [`SILENT`]: the
/// server gives no answer.
pub(super) const RANGES: &str = "ranges";
pub(super) const NOTES: &str = "notes";
pub(super) const TAGS: &str = "tags";
pub(super) const GO: &str = "go";
pub(super) const STAY: &str = "stay";
pub(super) const SILENT: &str = "silent";

/// Output that was read but not used yet, because a read may end within a line or take several.
#[derive(Debug, Default)]
pub(super) struct Said(Vec<u8>);

impl Said {
    /// Appends bytes that were read.
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Takes the next whole line that begins with one of `words`. Returns that word, and the others. Drops the lines
    /// before it.
    pub(super) fn line<'a>(&mut self, words: &[&'a str]) -> Option<(&'a str, Vec<String>)> {
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let mut line = line.split_whitespace();
            let first = line.next();
            if let Some(word) = words.iter().find(|word| Some(**word) == first) {
                return Some((word, line.map(str::to_owned).collect()));
            }
        }
        None
    }
}

/// Formats the three lines about the state that a server left.
pub(super) fn contents(
    ranges: &[PhysRange],
    noted: impl Iterator<Item = PciAddress>,
    tags: Option<TagRecord>,
) -> String {
    let ranges = ranges.iter().map(|range| format!(" {:x}+{:x}", range.first().0, range.length()));
    let names = noted.map(|function| format!(" {function}"));
    let first = std::iter::once(RANGES.to_owned()).chain(ranges);
    let second = std::iter::once(format!("\n{NOTES}")).chain(names);
    let tags = tags.map(|tags| format!(" {:x}", tags.to_bits()));
    let third = std::iter::once(format!("\n{TAGS}")).chain(tags);
    first.chain(second).chain(third).chain(["\n".to_owned()]).collect()
}

/// Parses the words of [`RANGES`]. `None` when one of them is not a range.
pub(super) fn ranges(words: &[String]) -> Option<Vec<PhysRange>> {
    words.iter().map(|word| range(word)).collect()
}

/// Parses the words of [`NOTES`]. `None` when one of them is not a function.
pub(super) fn noted(words: &[String]) -> Option<Vec<PciAddress>> {
    words.iter().map(|name| name.parse().ok()).collect()
}

/// Parses the word of [`TAGS`]. `None` when there is none, or when it is malformed. Then units may hold any tags.
pub(super) fn tags(words: &[String]) -> Option<TagRecord> {
    let bits = words.first().and_then(|bits| u64::from_str_radix(bits, 16).ok());
    bits.map(TagRecord::from_bits)
}

/// Parses `FIRST+LENGTH`, both hexadecimal.
fn range(text: &str) -> Option<PhysRange> {
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    let (first, length) = text.split_once('+')?;
    PhysRange::new(PhysAddr(number(first)?), number(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_whatever_pieces() {
        let text = "held\nranges 1000+2000\nnotes\n";
        for size in 1..text.len() {
            let mut said = Said::default();
            let mut found = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                said.hear(piece);
                while let Some((word, _)) = said.line(&[TOLD, UNTOLD, RANGES, NOTES]) {
                    found.push(word);
                }
            }
            assert_eq!(found, [TOLD, RANGES, NOTES], "{size}");
        }
    }

    #[test]
    fn a_line_is_waited_for_and_others_are_left_out() {
        let mut said = Said::default();
        said.hear(b"go\nunheld\nstay");
        assert_eq!(said.line(&[TOLD, UNTOLD]), Some((UNTOLD, Vec::new())));
        assert_eq!(said.line(&[GO, STAY, SILENT]), None, "half a line");
        said.hear(b"\n\n");
        assert_eq!(said.line(&[GO, STAY, SILENT]), Some((STAY, Vec::new())));
        assert_eq!(said.line(&[GO]), None);
    }

    #[test]
    fn contents_are_what_was_held() {
        let range = |first, length| PhysRange::new(PhysAddr(first), length).unwrap();
        let held = [range(0x20_0000, 0x20_0000), range(0x1_4000_0000, 0x1000)];
        let function = PciAddress::new(0, 3, 4, 1).unwrap();
        let record = TagRecord::from_bits(0x0002_0010);
        let text = contents(&held, [function].into_iter(), Some(record));
        let expected = "ranges 200000+200000 140000000+1000\nnotes 0000--03--04.1\ntags 20010\n";
        assert_eq!(text, expected);
        let mut said = Said::default();
        said.hear(text.as_bytes());
        let (_, words) = said.line(&[RANGES]).unwrap();
        assert_eq!(ranges(&words), Some(held.to_vec()));
        let (_, words) = said.line(&[NOTES]).unwrap();
        assert_eq!(noted(&words), Some(vec![function]));
        let (_, words) = said.line(&[TAGS]).unwrap();
        assert_eq!(tags(&words), Some(record));
        assert_eq!([tags(&[]), tags(&["x".to_owned()])], [None, None]);
        assert!(contents(&held, [function].into_iter(), None).ends_with("\ntags\n"));
        for bad in ["1000", "1000+0", "x+1", "ffffffffffffffff+2", "+"] {
            assert_eq!(ranges(&[bad.to_owned()]), None, "{bad}");
        }
    }
}
