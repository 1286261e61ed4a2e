//! A line at the prompt: programs with their arguments, one after the other.

/// When the next program is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// When this one has ended (`;`).
    Always,
    /// When this one has succeeded (`&&`).
    IfGood,
    /// At once (`&`).
    AtOnce,
}

/// A program's name and arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) words: Vec<String>,
    pub(crate) next: Next,
}

/// The programs in a line. Words are parted by spaces; there are no quotes.
pub(crate) fn steps(line: &str) -> Vec<Step> {
    let spaced = line.replace("&&", " \n ").replace('&', " & ").replace(';', " ; ");
    let mut steps = Vec::new();
    let mut words = Vec::new();
    for word in spaced.split(' ').filter(|word| !word.is_empty()) {
        let next = match word {
            "\n" => Next::IfGood,
            "&" => Next::AtOnce,
            ";" => Next::Always,
            _ => {
                words.push(word.to_owned());
                continue;
            }
        };
        steps.push(Step { words: std::mem::take(&mut words), next });
    }
    steps.push(Step { words, next: Next::Always });
    steps.retain(|step| !step.words.is_empty());
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(line: &str) -> Vec<(String, Next)> {
        steps(line).into_iter().map(|step| (step.words.join(" "), step.next)).collect()
    }

    #[test]
    fn programs_are_parted() {
        assert_eq!(parts(""), []);
        assert_eq!(parts("  iommuctl  tree "), [("iommuctl tree".into(), Next::Always)]);
        assert_eq!(
            parts("rogue --hold & sleep 2; kill -9 $!;iommuctl device 00:04.0"),
            [
                ("rogue --hold".into(), Next::AtOnce),
                ("sleep 2".into(), Next::Always),
                ("kill -9 $!".into(), Next::Always),
                ("iommuctl device 00:04.0".into(), Next::Always),
            ]
        );
        assert_eq!(
            parts("a&&b &&c"),
            [("a".into(), Next::IfGood), ("b".into(), Next::IfGood), ("c".into(), Next::Always),]
        );
    }
}
