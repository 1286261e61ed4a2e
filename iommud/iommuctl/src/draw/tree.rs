//! The tree as a picture: units one below the other, a box for each group, two lines for each device.

use svg::Document;
use svg::node::element::Rectangle;

use super::{area, colour, count, cut, document, label, stroke};
use crate::names;
use crate::server::machine::Device;
use crate::tree::{Branch, Group, state, title};

const WIDTH: f64 = 980.0;
const MARGIN: f64 = 20.0;
/// Height of a unit's heading.
const HEADING: f64 = 34.0;
/// Height of a device, and of a group's heading.
const ROW: f64 = 40.0;
/// Height of a reason.
const REASON: f64 = 20.0;
/// Height of a group's heading.
const TITLE: f64 = 24.0;
/// Between groups.
const GAP: f64 = 12.0;
/// Characters of a line.
const MOST: usize = 118;

/// The tree of a machine.
#[must_use]
pub fn draw(branches: &[Branch<'_>], processes: &dyn Fn(u32) -> Option<String>) -> Document {
    let groups = |branch: &Branch<'_>| branch.segments.values().map(Vec::len).sum::<usize>();
    let all = |branch: &Branch<'_>| branch.segments.values().flatten().map(height).sum::<f64>();
    let total: f64 =
        branches.iter().map(|branch| HEADING + all(branch) + GAP * count(groups(branch) + 1)).sum();
    let mut picture = document(WIDTH, total + 2.0 * MARGIN);
    let mut y = MARGIN;
    for branch in branches {
        let fill = if branch.enabled { colour::INK } else { colour::BAD };
        let words = cut(&branch.words, MOST);
        picture = picture.add(label(MARGIN, y + 22.0, 18, fill, words).set("font-weight", "bold"));
        y += HEADING;
        let top = y;
        for (segment, group) in flat(branch) {
            picture = picture.add(stroke(
                (MARGIN + 8.0, y + 12.0),
                (MARGIN + 24.0, y + 12.0),
                colour::LINE,
            ));
            picture = one_group(picture, y, segment, group, processes);
            y += height(group) + GAP;
        }
        if y > top {
            let last = flat(branch).last().map_or(0.0, |(_, group)| height(group) + GAP);
            let line = stroke((MARGIN + 8.0, top), (MARGIN + 8.0, y - last + 12.0), colour::LINE);
            picture = picture.add(line);
        }
        y += GAP;
    }
    picture
}

fn flat<'a>(branch: &'a Branch<'a>) -> impl Iterator<Item = (u16, &'a Group<'a>)> {
    branch.segments.iter().flat_map(|(segment, groups)| groups.iter().map(|of| (*segment, of)))
}

fn height(group: &Group<'_>) -> f64 {
    TITLE + ROW * count(group.devices.len()) + REASON * count(group.reasons.len()) + 6.0
}

fn one_group(
    picture: Document,
    y: f64,
    segment: u16,
    group: &Group<'_>,
    processes: &dyn Fn(u32) -> Option<String>,
) -> Document {
    let left = MARGIN + 24.0;
    let width = WIDTH - left - MARGIN;
    let frame: Rectangle =
        area(left, y, width, height(group), colour::BOX).set("stroke", colour::LINE).set("rx", 6);
    let words = format!("group {}, segment {segment:04x}", group.index);
    let mut picture =
        picture.add(frame).add(label(left + 10.0, y + 17.0, 12, colour::FAINT, words));
    let mut at = y + TITLE;
    for device in &group.devices {
        picture = one_device(picture, left + 10.0, at, device, processes);
        at += ROW;
    }
    for reason in &group.reasons {
        let words = cut(&format!("together: {reason}"), MOST + 20);
        let line = label(left + 10.0, at + 13.0, 11, colour::ODD, words);
        picture = picture.add(line.set("font-style", "italic"));
        at += REASON;
    }
    picture
}

fn one_device(
    picture: Document,
    x: f64,
    y: f64,
    device: &Device,
    processes: &dyn Fn(u32) -> Option<String>,
) -> Document {
    let open = device.unit.is_none() || device.reaches.contains("untranslated");
    let mark = match &device.owner {
        _ if open => colour::BAD,
        Some(_) => colour::OWNED,
        None => colour::POLICY,
    };
    let address = names::address(device.address());
    let name = cut(&title(device), MOST - 20);
    let state = cut(&state(device, processes), MOST + 10);
    picture
        .add(area(x, y + 2.0, 4.0, ROW - 8.0, mark))
        .add(label(x + 12.0, y + 15.0, 13, colour::INK, address).set("font-weight", "bold"))
        .add(label(x + 124.0, y + 15.0, 13, colour::INK, name))
        .add(label(x + 12.0, y + 31.0, 11, colour::FAINT, state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::machine::Machine;
    use crate::tree::branches;
    use crate::tree::tests::{nvmed, server};

    #[test]
    fn every_device_group_and_reason_is_in_the_picture() {
        let machine = Machine::read(&server()).unwrap();
        let svg = draw(&branches(&machine), &nvmed).to_string();
        for words in [
            "unit 0: vt-d enabled",
            "behind no unit: NOT CONFINED",
            "group 2, segment 0000",
            "0000:01:00.0",
            "owned by process 12 (nvmed)",
            "together: 0000:00:1c.0 (root port)",
        ] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
        // Headings 34, 3 rows, 2 titles, 1 reason: as high as what it shows.
        assert!(svg.contains(r#"viewBox="0 0 980 "#), "{svg}");
        assert_eq!(svg.matches(colour::OWNED).count(), 1, "one device has an owner");
    }
}
