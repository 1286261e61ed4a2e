//! Domain tags that units may still hold from earlier servers, and the tags that a new server takes.
//!
//! A unit keeps the translations of a server after the server has ended, under that server's tags. Until the unit is
//! flushed, a tag that it may hold must not stand for another domain. So each server takes tags that follow those of
//! the server before it, in the ring of all tags. Then one [`TagSpan`] covers all tags that units may hold.
//!
//! ```text
//! tags      2 ........................................................ last, then 2 again
//! server 1  [2 = = 5]                                                        records 2..5
//! server 2           [6 = 7]     dies before every unit was flushed          records 2..7
//! server 3                  [8 = = = ...]   every unit flushed               records 2..9, then 8..9
//! ```

use super::capabilities::DomainTag;

/// The first tag of a domain. Tag 0 is never used, and 1 stands for requests that go through untranslated.
const FIRST: u16 = 2;

/// Tags from `first` to `last`. If `last` is less than `first`, they go on from the highest tag to 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagSpan {
    /// The first tag.
    pub first: u16,
    /// The last tag.
    pub last: u16,
}

impl TagSpan {
    /// Whether the tag is one of them.
    #[must_use]
    pub const fn contains(self, DomainTag(tag): DomainTag) -> bool {
        let (from, to) = (self.first <= tag, tag <= self.last);
        if self.first <= self.last { from && to } else { from || to && tag >= FIRST }
    }
}

/// Tags under which units may hold translations of servers before this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeldTags {
    /// None.
    #[default]
    Nothing,
    /// The tags of this span.
    Span(TagSpan),
    /// Any tag: the tags are not known, or servers died during take-over until no tag was left.
    Everything,
}

impl HeldTags {
    /// Whether a unit may hold translations under the tag.
    #[must_use]
    pub const fn contains(self, tag: DomainTag) -> bool {
        match self {
            Self::Nothing => false,
            Self::Span(span) => span.contains(tag),
            Self::Everything => true,
        }
    }

    /// The tags that a unit is assumed to hold if its owner left no record: firmware, or another system before
    /// `kexec`. All known owners assign tags from 1 up. So the lower half of the tags up to `last` counts as theirs.
    /// This is a guess: it does not exclude an owner that used tags of the upper half.
    #[must_use]
    pub const fn of_strangers(last: u16) -> Self {
        Self::Span(TagSpan { first: 1, last: last / 2 })
    }
}

/// The tags that one server takes, one after the other. They follow those that units may hold, round the ring. They
/// are at most half of all tags: the other half is for the servers after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagRing {
    first: u16,
    last: u16,
}

impl TagRing {
    /// The ring of tags up to `last`, the highest tag that every unit can hold. It begins after `held`.
    #[must_use]
    pub const fn new(held: HeldTags, last: u16) -> Self {
        let first = match held {
            HeldTags::Span(span) if span.last >= FIRST - 1 && span.last < last => span.last + 1,
            _ => FIRST,
        };
        Self { first, last }
    }

    /// The tags after `after`, or all, in the order in which they are taken. They are two stretches, of which either
    /// may be empty. None is above `last`.
    #[must_use]
    pub fn stretches(self, after: Option<DomainTag>, last: u16) -> [(u32, u32); 2] {
        let last = u32::from(last.min(self.last));
        let next = after.map_or(u32::from(self.first), |tag| u32::from(tag.0) + 1);
        let [first, below] = [self.first, self.first.saturating_sub(1)].map(u32::from);
        let half = u32::from(self.last.saturating_sub(FIRST - 1)).div_ceil(2);
        let to_the_end = (u32::from(self.last) + 1).saturating_sub(first);
        // Past its end the ring goes on with the lowest tags. It does the same for a unit that was added late and can
        // hold none of the others.
        let rest = match last < first {
            true => below,
            false => (u32::from(FIRST) + half).saturating_sub(to_the_end + 1).min(below),
        };
        if next < first {
            return [(next, rest.min(last)), (1, 0)];
        }
        let upper = (first + half - 1).min(last);
        [(next, upper), (u32::from(FIRST), rest.min(last))]
    }

    /// Distance of a tag from the start of the ring.
    const fn place(self, tag: u16) -> u16 {
        tag.wrapping_sub(self.first)
    }

    /// Of two tags that were taken, returns the one that was taken later on the first round.
    #[must_use]
    pub const fn later(self, a: DomainTag, b: DomainTag) -> DomainTag {
        if self.place(a.0) < self.place(b.0) { b } else { a }
    }

    /// The tags that units may hold once they also hold this server's tags up to `to`.
    #[must_use]
    pub const fn held_with(self, held: HeldTags, to: DomainTag) -> HeldTags {
        match held {
            HeldTags::Nothing => HeldTags::Span(TagSpan { first: self.first, last: to.0 }),
            HeldTags::Span(span) if self.place(to.0) < self.place(span.first) => {
                HeldTags::Span(TagSpan { first: span.first, last: to.0 })
            }
            HeldTags::Span(_) | HeldTags::Everything => HeldTags::Everything,
        }
    }
}

/// Units, by index, whose last owner left no record. All from the 29th on count as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strangers(u32);

impl Strangers {
    const LAST: usize = 28;

    /// Whether this unit is one of them.
    #[must_use]
    pub fn contains(self, unit: usize) -> bool {
        self.0 & 1 << unit.min(Self::LAST) != 0
    }

    /// Enters a unit.
    pub fn insert(&mut self, unit: usize) {
        self.0 |= 1 << unit.min(Self::LAST);
    }
}

/// The record that a server leaves for the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TagRecord {
    /// Tags that units may hold.
    pub held: HeldTags,
    /// Units that may hold any tag, since no server has flushed them.
    pub strangers: Strangers,
}

impl TagRecord {
    /// Encodes the record in 61 bits: the strangers in bits 60:32, the first tag of the span in bits 31:16 and the
    /// last in 15:0. A span of 0 to 0 means no tags.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        let (first, last) = match self.held {
            HeldTags::Nothing => (0, 0),
            HeldTags::Span(TagSpan { first, last }) => (first, last),
            HeldTags::Everything => (0, u16::MAX),
        };
        u64::from(self.strangers.0) << 32 | u64::from(first) << 16 | u64::from(last)
    }

    /// Decodes a value of `to_bits`; bits 63:61 are ignored. A span that `to_bits` never makes means every tag.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        let half = |shift: u32| u16::try_from(bits >> shift & 0xffff).unwrap_or(u16::MAX);
        let held = match (half(16), half(0)) {
            (0, 0) => HeldTags::Nothing,
            (1.., 1..) => HeldTags::Span(TagSpan { first: half(16), last: half(0) }),
            _ => HeldTags::Everything,
        };
        let strangers = u32::try_from(bits >> 32 & 0x1fff_ffff).unwrap_or(u32::MAX);
        Self { held, strangers: Strangers(strangers) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u16, last: u16) -> HeldTags {
        HeldTags::Span(TagSpan { first, last })
    }

    /// All tags of a ring, in its order.
    fn order(ring: TagRing, last: u16) -> Vec<u16> {
        let stretches = ring.stretches(None, last).into_iter();
        stretches
            .flat_map(|(first, last)| first..=last)
            .map(|tag| tag.try_into().unwrap())
            .collect()
    }

    #[test]
    fn a_span_may_go_past_the_end() {
        let within =
            |held: HeldTags| (0..=u16::MAX).filter(move |tag| held.contains(DomainTag(*tag)));
        assert_eq!(within(span(4, 6)).collect::<Vec<_>>(), [4, 5, 6]);
        assert_eq!(within(span(0xfffe, 3)).collect::<Vec<_>>(), [2, 3, 0xfffe, 0xffff]);
        assert_eq!(within(HeldTags::Nothing).count(), 0);
        assert_eq!(within(HeldTags::Everything).count(), 0x1_0000);
    }

    #[test]
    fn a_stranger_is_taken_to_have_used_the_lower_half() {
        let held = HeldTags::of_strangers(255);
        assert_eq!(held, span(1, 127));
        assert!(held.contains(DomainTag(1)) && !span(2, 4).contains(DomainTag(1)));
        assert_eq!(order(TagRing::new(held, 255), 255), (128..=254).collect::<Vec<_>>());
        assert_eq!(
            order(TagRing::new(HeldTags::of_strangers(15), 15), 15),
            (8..=14).collect::<Vec<_>>()
        );
        assert_eq!(order(TagRing::new(span(1, 1), 15), 15)[0], 2);
    }

    /// Sixteen domains, the fewest that a unit can have (VT-d CAP.ND 0): tags 2 to 15, of which one server takes 7.
    #[test]
    fn a_server_takes_half_of_the_tags_from_behind_the_last_one() {
        assert_eq!(order(TagRing::new(HeldTags::Nothing, 15), 15), [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(order(TagRing::new(span(2, 4), 15), 15), [5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(order(TagRing::new(span(5, 11), 15), 15), [12, 13, 14, 15, 2, 3, 4]);
        assert_eq!(order(TagRing::new(span(12, 4), 15), 15), [5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(order(TagRing::new(span(2, 15), 15), 15), [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(order(TagRing::new(HeldTags::Nothing, u16::MAX), u16::MAX).len(), 0x7fff);
        // A unit that cannot hold all of them.
        assert_eq!(
            order(TagRing::new(span(2, 4), 255), 15),
            [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
        );
        assert_eq!(order(TagRing::new(span(20, 30), 255), 15), (2..16).collect::<Vec<_>>());
    }

    #[test]
    fn the_next_stretch_begins_behind_a_tag() {
        let ring = TagRing::new(span(5, 11), 15);
        let behind = |tag| ring.stretches(Some(DomainTag(tag)), 15);
        assert_eq!(behind(13), [(14, 15), (2, 4)]);
        assert_eq!(behind(15), [(16, 15), (2, 4)]);
        assert_eq!(behind(3)[0], (4, 4));
        assert!(behind(4).iter().all(|(first, last)| first > last));
    }

    /// Servers that die one after the other during take-over. Each takes a tag, and no tag is taken twice until none
    /// is left.
    #[test]
    fn a_chain_of_servers_takes_each_tag_once() {
        let (mut held, mut taken) = (span(6, 9), Vec::new());
        while held != HeldTags::Everything {
            let ring = TagRing::new(held, 15);
            let tag = DomainTag(order(ring, 15)[0]);
            if !held.contains(tag) {
                taken.push(tag.0);
            }
            held = ring.held_with(held, tag);
        }
        assert_eq!(taken, [10, 11, 12, 13, 14, 15, 2, 3, 4, 5]);
    }

    #[test]
    fn what_a_unit_may_hold_grows_round_the_ring() {
        let ring = TagRing::new(span(100, 199), 255);
        let with = |tag| ring.held_with(span(100, 199), DomainTag(tag));
        assert_eq!((with(200), with(255), with(2)), (span(100, 200), span(100, 255), span(100, 2)));
        assert_eq!((with(99), with(100)), (span(100, 99), HeldTags::Everything));
        assert_eq!(ring.held_with(HeldTags::Nothing, DomainTag(3)), span(200, 3));
        assert_eq!(ring.later(DomainTag(255), DomainTag(2)), DomainTag(2));
        assert_eq!(ring.later(DomainTag(3), DomainTag(2)), DomainTag(3));
        // Noted by a server over units with more tags.
        let ring = TagRing::new(span(5000, 6000), 255);
        assert_eq!(order(ring, 255)[0], 2);
        assert_eq!(ring.held_with(span(5000, 6000), DomainTag(7)), span(5000, 7));
    }

    #[test]
    fn a_record_is_what_was_written() {
        let mut strangers = Strangers::default();
        [0, 5, 40].into_iter().for_each(|unit| strangers.insert(unit));
        assert!([0, 5, 28, 29, 1000].into_iter().all(|unit| strangers.contains(unit)));
        assert!(!strangers.contains(1) && !strangers.contains(27));
        let record = |held| TagRecord { held, strangers };
        assert_eq!(record(span(2, 0x1234)).to_bits(), 0x1000_0021_0002_1234);
        for held in [HeldTags::Nothing, HeldTags::Everything, span(2, 9), span(0xffff, 2)] {
            let bits = record(held).to_bits();
            assert_eq!((TagRecord::from_bits(bits), bits >> 61), (record(held), 0), "{held:?}");
        }
        for odd in [1, 5, 0x0001_0000, 0x0005_0000] {
            assert_eq!(TagRecord::from_bits(odd).held, HeldTags::Everything, "{odd:#x}");
        }
    }
}
