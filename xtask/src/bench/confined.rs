//! Row 15: what strict confinement of each transfer costs, against a controller that no unit confines.

use super::{Line, not_measured};

/// Number of the row.
const ROW: u32 = 15;

/// Parses the guest's log lines about modes: `confine MODE, N bytes, depth D: N against M a second, ratio R (...); C
/// calls a transfer`.
pub(super) fn lines(logs: &[String]) -> Vec<Line> {
    let lines: Vec<Line> = logs.iter().filter_map(|log| line(log)).collect();
    if lines.is_empty() {
        let what = "NVMe random reads in QEMU, confined: pool, transfer, page-exact";
        return vec![not_measured(ROW, what, "", "the guest did not tell")];
    }
    lines
}

fn line(log: &str) -> Option<Line> {
    let (cell, rest) = log.strip_prefix("confine ")?.split_once(": ")?;
    let (ours, rest) = rest.split_once(" against ")?;
    let (theirs, rest) = rest.split_once(" a second, ratio ")?;
    let ratio = rest.split_whitespace().next()?.parse::<f64>().ok()?;
    let calls = rest.rsplit_once("; ").map_or(String::new(), |(_, calls)| format!(", {calls}"));
    Some(Line {
        row: ROW,
        what: format!("NVMe random reads in QEMU, confined: {cell}"),
        measured: format!("{ours} a second{calls}"),
        target: String::new(),
        peer: format!("off {theirs}"),
        ratio: Some(ratio),
        verdict: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn each_mode_size_and_depth_is_a_line() {
        let log =
            |rest: &str| format!("confine transfer, 4096 bytes, depth 8: 2417 against 2600 {rest}");
        let ratio = "a second, ratio 0.930 (median of 31 pairs, half of them 0.8 to 1.1)";
        let all = [
            log(&format!("{ratio}; 0.125 calls a transfer")),
            log(ratio),
            "4 KiB random reads: 1 against 1 a second, ratio 1.000".into(),
            log("a second"),
        ];
        let lines = lines(&all);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].measured, "2417 a second, 0.125 calls a transfer");
        assert_eq!(
            (lines[0].row, lines[0].ratio, lines[0].peer.as_str()),
            (15, Some(0.93), "off 2600")
        );
        assert_eq!(lines[1].measured, "2417 a second");
        assert_eq!(super::lines(&[])[0].verdict, "not measured");
    }
}
