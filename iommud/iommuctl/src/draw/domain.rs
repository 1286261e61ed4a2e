//! The addresses of a domain, drawn to scale.
//!
//! Buffers are small and the space is large: what lies close together is drawn to one scale, and far gaps are cut out.

use svg::Document;

use super::{area, colour, count, cut, document, label, stroke};
use crate::names;
use crate::output::size;
use crate::server::domain::Domain;

const WIDTH: f64 = 900.0;
const MARGIN: f64 = 20.0;
/// Height of a stretch's bar.
const BAR: f64 = 180.0;
/// Height of the bar of one range.
const ALONE: f64 = 36.0;
/// Left edge and width of the bar of the whole space.
const WHOLE: f64 = 800.0;
const NARROW: f64 = 40.0;
/// Height of the gap between two stretches.
const GAP: f64 = 34.0;
/// Left edge and width of the bar.
const LEFT: f64 = 190.0;
const BROAD: f64 = 150.0;
/// Between the baselines of two names.
const STEP: f64 = 15.0;
/// A gap this many times longer than what is before it is cut out.
const FAR: u64 = 8;

/// A range with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub first: u64,
    /// Last address (inclusive).
    pub last: u64,
    /// What it is.
    pub name: String,
    /// No mapping may be there.
    pub reserved: bool,
}

/// Ranges that are drawn to one scale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch(Vec<Range>);

impl Stretch {
    fn first(&self) -> u64 {
        self.0.iter().map(|range| range.first).min().unwrap_or(0)
    }

    fn last(&self) -> u64 {
        self.0.iter().map(|range| range.last).max().unwrap_or(0)
    }

    /// Bytes from the first to the last address.
    fn length(&self) -> u64 {
        (self.last() - self.first()).saturating_add(1)
    }

    /// A range by itself needs no scale.
    fn height(&self) -> f64 {
        match self.0.len() {
            1 => ALONE,
            several => BAR.max(STEP * (count(several) + 1.0)),
        }
    }
}

/// The ranges of a domain, in stretches, by address.
#[must_use]
pub fn stretches(domain: &Domain) -> Vec<Stretch> {
    let mapped = domain.mappings.iter().map(|mapping| {
        let (device, bytes) = (names::address(mapping.device), size(mapping.bytes()));
        let name = format!("buffer {} of {device}, {bytes}, {}", mapping.slot, mapping.access());
        Range { first: mapping.first, last: mapping.last, name, reserved: false }
    });
    let reserved = domain.reserved.iter().map(|range| {
        let bytes = (range.last - range.first).saturating_add(1);
        let name = format!("{}, {}", range.words, size(bytes));
        Range { first: range.first, last: range.last, name, reserved: true }
    });
    let mut ranges: Vec<Range> = mapped.chain(reserved).collect();
    ranges.sort_by_key(|range| (range.first, range.last));
    let mut found: Vec<Stretch> = Vec::new();
    for range in ranges {
        match found.last_mut() {
            Some(stretch) if is_near(stretch, &range) => stretch.0.push(range),
            _ => found.push(Stretch(vec![range])),
        }
    }
    found
}

fn is_near(stretch: &Stretch, range: &Range) -> bool {
    let gap = range.first.saturating_sub(stretch.last());
    let own = (range.last - range.first).saturating_add(1);
    // One that dwarfs the others would leave no room for them.
    let dwarfs = own / FAR > stretch.length() || stretch.length() / FAR / FAR > own;
    gap <= stretch.length().saturating_mul(FAR) && !dwarfs
}

/// The picture of a domain.
#[must_use]
pub fn draw(domain: &Domain, owner: &str) -> Document {
    let stretches = stretches(domain);
    let height: f64 = stretches.iter().map(|stretch| stretch.height() + GAP).sum();
    let mut picture = document(WIDTH, height + GAP + 2.0 * MARGIN + 70.0);
    let devices: Vec<String> = domain.devices.iter().map(|of| names::address(of.address)).collect();
    let title = format!("domain {}: {} of {owner}", domain.index, devices.join(", "));
    let plural = if domain.count == 1 { "" } else { "s" };
    let free = about(domain.free());
    let facts = format!(
        "{} mapping{plural}, about {free} free, pages of {}",
        domain.count, domain.page_sizes
    );
    picture = picture
        .add(
            label(MARGIN, MARGIN + 16.0, 18, colour::INK, cut(&title, 90))
                .set("font-weight", "bold"),
        )
        .add(label(MARGIN, MARGIN + 36.0, 12, colour::FAINT, cut(&facts, 120)));
    let mut y = MARGIN + 60.0;
    let mut end = Some(domain.addresses.0);
    for stretch in &stretches {
        picture = gap(picture, y, end, stretch.first());
        y += GAP;
        picture = one_stretch(picture, y, stretch);
        y += stretch.height();
        end = stretch.last().checked_add(1);
    }
    let picture = gap(picture, y, end, domain.addresses.1.saturating_add(1));
    whole_space(picture, domain, &stretches, y + GAP)
}

/// All addresses to one scale, at the right: where the stretches are.
fn whole_space(picture: Document, domain: &Domain, stretches: &[Stretch], bottom: f64) -> Document {
    let top = MARGIN + 60.0;
    let (first, last) = domain.addresses;
    let length = (last - first).saturating_add(1);
    let height = (bottom - top).max(BAR);
    let words = format!("all {}", about(length));
    let mut picture =
        picture.add(area(WHOLE, top, NARROW, height, colour::BOX).set("stroke", colour::LINE)).add(
            label(WHOLE + NARROW / 2.0, top - 6.0, 11, colour::FAINT, words)
                .set("text-anchor", "middle"),
        );
    for stretch in stretches {
        let at = top + height * share(stretch.first().saturating_sub(first), length);
        let tall = (height * share(stretch.length(), length)).max(1.5);
        let reserved = stretch.0.iter().all(|range| range.reserved);
        let fill = if reserved { colour::RESERVED } else { colour::OWNED };
        picture = picture.add(area(WHOLE, at, NARROW, tall, fill));
    }
    picture
}

/// What is between two stretches. `None`: the stretch ends where the space does.
fn gap(picture: Document, y: f64, from: Option<u64>, to: u64) -> Document {
    let Some(bytes) = from.and_then(|from| to.checked_sub(from)).filter(|bytes| *bytes > 0) else {
        return picture;
    };
    let words = format!("⋮ {} without a mapping", about(bytes));
    picture.add(label(LEFT + 14.0, y + GAP / 2.0 + 4.0, 12, colour::FAINT, words))
}

/// A number of bytes, to three digits.
fn about(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => {
            format!("{}.{} {name}", bytes / unit, (bytes % unit).saturating_mul(10) / unit)
        }
        None => size(bytes),
    }
}

fn one_stretch(picture: Document, y: f64, stretch: &Stretch) -> Document {
    let (first, length, height) = (stretch.first(), stretch.length(), stretch.height());
    let place = |address: u64| y + height * share(address - first, length);
    let frame = area(LEFT, y, BROAD, height, colour::BOX).set("stroke", colour::LINE);
    let mut picture = picture.add(frame);
    if stretch.0.len() > 1 {
        let words = format!("{} to scale", about(length));
        let place = label(MARGIN, y + height, 11, colour::FAINT, words);
        picture = picture.add(place);
    }
    let mut next = y;
    for range in &stretch.0 {
        let top = place(range.first);
        let tall = (height * share(range.last - range.first, length)).max(1.0);
        let fill = if range.reserved { colour::RESERVED } else { colour::OWNED };
        let middle = top + tall / 2.0;
        let baseline = middle.max(next + STEP / 2.0);
        next = baseline + STEP / 2.0;
        let right = LEFT + BROAD;
        let start = format!("{:#x}", range.first);
        picture = picture
            .add(area(LEFT, top, BROAD, tall, fill).set("stroke", colour::PAPER))
            .add(stroke((right, middle), (right + 24.0, baseline), colour::LINE))
            .add(stroke((LEFT, middle), (LEFT - 12.0, baseline), colour::LINE))
            .add(label(right + 28.0, baseline + 4.0, 12, colour::INK, cut(&range.name, 80)))
            .add(
                label(LEFT - 16.0, baseline + 4.0, 12, colour::FAINT, start)
                    .set("text-anchor", "end"),
            );
    }
    picture
}

/// `part` of `whole`, from 0 to 1. Exact to a thousandth of a pixel.
fn share(part: u64, whole: u64) -> f64 {
    let thousandths = u128::from(part) * 1_000_000 / u128::from(whole.max(1));
    u32::try_from(thousandths).map_or(1.0, |part| f64::from(part) / 1_000_000.0).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::domain::tests::TEXT;

    /// The domain with its second mapping at another place.
    fn moved(first: u64, last: u64) -> Domain {
        let mut domain = Domain::parse(TEXT).unwrap();
        (domain.mappings[0].first, domain.mappings[0].last) = (first, last);
        domain
    }

    #[test]
    fn far_gaps_are_cut_out_and_near_ranges_share_a_scale() {
        let found: Vec<Vec<u64>> = stretches(&moved(0x1f_e000, 0x1f_efff))
            .iter()
            .map(|stretch| stretch.0.iter().map(|range| range.first).collect())
            .collect();
        assert_eq!(found, [vec![0x1f_e000], vec![0x20_0000], vec![0xfee0_0000]]);
        let found = stretches(&moved(0x1f_e000, 0x1f_ffff));
        assert_eq!((found.len(), found[0].0.len(), found[0].length()), (2, 2, 0x1_2000));
    }

    #[test]
    fn the_picture_names_ranges_and_gaps() {
        let svg = draw(&Domain::parse(TEXT).unwrap(), "nvmed").to_string();
        for words in [
            "domain 3: 0000:01:00.0 of nvmed",
            "buffer 0 of 0000:01:00.0, 4 KiB, read only",
            "buffer 1 of 0000:01:00.0, 64 KiB, read and write",
            "interrupts, 1 MiB",
            "⋮ 60 KiB without a mapping",
            "0x200000",
            "about 3.9 GiB free",
            "all 3.9 GiB",
        ] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
        assert!(!svg.contains("buffer 2 "), "it has no mapping");
        assert!(!svg.contains("to scale"), "each range is by itself");
        let near = draw(&moved(0x1f_e000, 0x1f_ffff), "nvmed").to_string();
        assert!(near.contains("72 KiB to scale"), "{near}");
    }

    #[test]
    fn a_domain_of_all_addresses_is_drawn() {
        let mut domain = moved(0, u64::MAX);
        domain.addresses = (0, u64::MAX);
        let svg = draw(&domain, "nvmed").to_string();
        assert!(svg.contains("0x0") && svg.ends_with("</svg>"), "{svg}");
        domain.mappings.clear();
        domain.reserved.clear();
        assert!(draw(&domain, "nvmed").to_string().ends_with("</svg>"));
    }

    #[test]
    fn sizes_are_proportions() {
        assert_eq!((share(1, 4), share(0, 4), share(4, 4)), (0.25, 0.0, 1.0));
        assert_eq!(share(u64::MAX / 2, u64::MAX), 0.499_999);
        assert_eq!(
            (about(60 << 10), about(1536), about(17)),
            ("60 KiB".into(), "1.5 KiB".into(), "17 bytes".to_owned())
        );
    }
}
