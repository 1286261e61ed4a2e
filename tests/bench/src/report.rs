//! The printed output: one JSON object on each line, which `xtask bench` puts into a table.

use serde_json::{Value, json};

/// One line of the table.
pub struct Line {
    /// Number of the target in the table of targets.
    pub row: u32,
    /// The measured quantity.
    pub what: String,
    /// The figure, with its unit.
    pub measured: String,
    /// The target.
    pub target: &'static str,
    /// The peer and its figure.
    pub peer: String,
    /// Ratio of our figure to the peer's: the median of the rounds' ratios.
    pub ratio: Option<f64>,
    /// Whether the target is met; `None` for a line without a target.
    pub met: Option<bool>,
}

impl Line {
    /// Creates a line without a target.
    pub fn note(row: u32, what: impl Into<String>, measured: impl Into<String>) -> Self {
        Self {
            row,
            what: what.into(),
            measured: measured.into(),
            target: "",
            peer: String::new(),
            ratio: None,
            met: None,
        }
    }

    /// Adds a target and whether it is met.
    pub fn target(mut self, target: &'static str, met: bool) -> Self {
        self.target = target;
        self.met = Some(met);
        self
    }

    /// Adds a peer.
    pub fn peer(mut self, peer: impl Into<String>, ratio: f64) -> Self {
        self.peer = peer.into();
        self.ratio = Some(ratio);
        self
    }

    /// Prints the line.
    pub fn print(&self) {
        let ratio =
            self.ratio.map_or(Value::Null, |ratio| json!((ratio * 1000.0).round() / 1000.0));
        let verdict = match self.met {
            None => "",
            Some(true) => "met",
            Some(false) => "missed",
        };
        let line = json!({
            "row": self.row, "what": self.what, "measured": self.measured, "target": self.target,
            "peer": self.peer, "ratio": ratio, "verdict": verdict,
        });
        println!("{line}");
    }
}
