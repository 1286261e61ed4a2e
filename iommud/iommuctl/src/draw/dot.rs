//! The tree as a graph for Graphviz.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::names;
use crate::tree::{Branch, title};

/// The tree of a machine in the DOT language: a cluster for each unit and group, a node for each device.
#[must_use]
pub fn tree(branches: &[Branch<'_>]) -> String {
    let mut out = String::from(
        "digraph iommu {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n",
    );
    // Writing to a string cannot fail.
    for (number, branch) in branches.iter().enumerate() {
        let words = quoted(&branch.words);
        let _ = writeln!(out, "  subgraph cluster_unit{number} {{\n    label={words};");
        for group in branch.segments.values().flatten() {
            let index = group.index;
            let _ = writeln!(out, "    subgraph cluster_group{index} {{");
            let _ = writeln!(out, "      label=\"group {index}\";");
            for device in &group.devices {
                let address = names::address(device.address());
                let text = quoted(&format!("{address}\n{}", title(device)));
                let _ = writeln!(out, "      {} [label={text}];", quoted(&address));
            }
            let _ = writeln!(out, "    }}");
        }
        let _ = writeln!(out, "  }}");
    }
    for (bridge, behind) in edges(branches) {
        let _ = writeln!(out, "  {} -> {};", quoted(&bridge), quoted(&behind));
    }
    out.push_str("}\n");
    out
}

/// From each bridge to each device on the bus directly behind it.
fn edges(branches: &[Branch<'_>]) -> Vec<(String, String)> {
    let groups = branches.iter().flat_map(|branch| branch.segments.values().flatten());
    let devices: Vec<_> = groups.flat_map(|group| group.devices.iter()).collect();
    let mut on_bus: BTreeMap<(u16, u8), Vec<String>> = BTreeMap::new();
    for device in &devices {
        let at = device.address();
        let bus = on_bus.entry((at.segment, at.requester.bus())).or_default();
        bus.push(names::address(at));
    }
    let edges = devices.iter().flat_map(|bridge| {
        let own = bridge.address();
        let bus = bridge.function.buses().map(|buses| (own.segment, buses.secondary));
        let behind = bus.and_then(|bus| on_bus.get(&bus)).into_iter().flatten();
        behind.map(move |at| (names::address(own), at.clone()))
    });
    edges.collect()
}

/// A string of the DOT language.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::machine::Machine;
    use crate::tree::branches;
    use crate::tree::tests::server;

    #[test]
    fn units_and_groups_are_clusters_and_bridges_lead_to_devices() {
        let machine = Machine::read(&server()).unwrap();
        let expected = r#"digraph iommu {
  rankdir=LR;
  node [shape=box, fontname="sans-serif"];
  subgraph cluster_unit0 {
    label="unit 0: vt-d enabled";
    subgraph cluster_group2 {
      label="group 2";
      "0000:00:1c.0" [label="0000:00:1c.0\nPCI bridge: Intel 100 Series/C230 Series Chipset Family PCI Express Root Port #1"];
      "0000:01:00.0" [label="0000:01:00.0\nNon-Volatile memory controller: Samsung Electronics Co Ltd NVMe SSD Controller SM981/PM981/PM983"];
    }
  }
  subgraph cluster_unit1 {
    label="behind no unit: NOT CONFINED";
    subgraph cluster_group5 {
      label="group 5";
      "0000:00:04.0" [label="0000:00:04.0\nUnclassified device: device 1234:11e8"];
    }
  }
  "0000:00:1c.0" -> "0000:01:00.0";
}
"#;
        assert_eq!(tree(&branches(&machine)), expected);
    }

    #[test]
    fn quotes_and_line_feeds_are_escaped() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\nd""#);
    }
}
