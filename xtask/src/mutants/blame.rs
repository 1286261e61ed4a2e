//! Traces an error of the compiler to the mutant or the place that it comes from, by the comments of `rewrite`.

use std::ops::Range;
use std::path::Path;

use serde_json::Value;

/// What an error comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Culprit {
    /// A mutant by itself.
    Mutant(u32),
    /// The form of a site.
    Site(u32),
}

/// Text between a pair of comments.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    culprit: Culprit,
    range: Range<usize>,
}

/// Returns the culprits of an error: at its primary places, or else at the other ones.
pub(super) fn of(error: &Value, root: &Path) -> Vec<Culprit> {
    let spans = error.get("spans").and_then(Value::as_array).cloned().unwrap_or_default();
    let primary = |span: &&Value| span.get("is_primary").and_then(Value::as_bool) == Some(true);
    let (first, others): (Vec<&Value>, Vec<&Value>) = spans.iter().partition(primary);
    let found = |spans: Vec<&Value>| -> Vec<Culprit> {
        spans.into_iter().flat_map(|span| of_span(span, root)).collect()
    };
    let culprits = found(first);
    if culprits.is_empty() { found(others) } else { culprits }
}

/// Returns the last site that begins before an error, for want of anything better.
pub(super) fn before(error: &Value, root: &Path) -> Option<Culprit> {
    let (file, range) = position(error.get("spans")?.get(0)?)?;
    let text = std::fs::read_to_string(root.join(file)).ok()?;
    let sites = marks(&text).into_iter().filter(|mark| matches!(mark.culprit, Culprit::Site(_)));
    let last = sites.filter(|mark| mark.range.start < range.start).max_by_key(|m| m.range.start);
    last.map(|mark| mark.culprit)
}

fn of_span(span: &Value, root: &Path) -> Vec<Culprit> {
    let Some((file, range)) = position(span) else { return Vec::new() };
    let Ok(text) = std::fs::read_to_string(root.join(file)) else { return Vec::new() };
    in_text(&text, range)
}

fn position(span: &Value) -> Option<(&str, Range<usize>)> {
    let byte = |name: &str| usize::try_from(span.get(name)?.as_u64()?).ok();
    Some((span.get("file_name")?.as_str()?, byte("byte_start")?..byte("byte_end")?))
}

/// The innermost mark around a range; without one, all that it contains; without these, all on its lines.
fn in_text(text: &str, range: Range<usize>) -> Vec<Culprit> {
    let marks = marks(text);
    let around = marks
        .iter()
        .filter(|mark| mark.range.start <= range.start && range.end <= mark.range.end)
        .min_by_key(|mark| mark.range.len());
    if let Some(mark) = around {
        return vec![mark.culprit];
    }
    let sites = |range: &Range<usize>| -> Vec<Culprit> {
        let touched = marks.iter().filter(|mark| {
            matches!(mark.culprit, Culprit::Site(_))
                && mark.range.start < range.end
                && range.start < mark.range.end
        });
        touched.map(|mark| mark.culprit).collect()
    };
    let contained = sites(&range);
    if contained.is_empty() { sites(&lines(text, &range)) } else { contained }
}

fn lines(text: &str, range: &Range<usize>) -> Range<usize> {
    let before = text.get(..range.start).and_then(|text| text.rfind('\n'));
    let after = text.get(range.end..).and_then(|text| text.find('\n'));
    before.unwrap_or(0)..after.map_or(text.len(), |at| range.end + at)
}

fn marks(text: &str) -> Vec<Mark> {
    let mut open: Vec<(Culprit, usize)> = Vec::new();
    let mut out = Vec::new();
    for (at, _) in text.match_indices("/*") {
        let rest = text.get(at + 2..).unwrap_or_default();
        let Some((comment, _)) = rest.split_once("*/") else { break };
        if let Some(culprit) = comment.strip_prefix('[').and_then(culprit) {
            open.push((culprit, at));
        } else if let Some(closed) = comment.strip_suffix(']').and_then(culprit)
            && let Some(index) = open.iter().rposition(|(culprit, _)| *culprit == closed)
        {
            let (culprit, start) = open.remove(index);
            out.push(Mark { culprit, range: start..at });
        }
    }
    out
}

fn culprit(text: &str) -> Option<Culprit> {
    let number = text.get(1..)?.parse().ok()?;
    match text.get(..1)? {
        "m" => Some(Culprit::Mutant(number)),
        "s" => Some(Culprit::Site(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "fn f() { /*[s1*/a /*[m1*/b/*m1]*/ c/*s1]*/ d\n e }\n f";

    fn at(word: &str) -> Vec<Culprit> {
        let start = TEXT.rfind(word).unwrap();
        in_text(TEXT, start..start + word.len())
    }

    #[test]
    fn the_innermost_mark_is_at_fault() {
        assert_eq!(at("b"), [Culprit::Mutant(1)]);
        assert_eq!(at(" c"), [Culprit::Site(1)]);
        assert_eq!(at(" d"), [Culprit::Site(1)], "on the same line");
        assert_eq!(at(TEXT), [Culprit::Site(1)], "within");
        assert_eq!(at(" f"), []);
    }

    #[test]
    fn primary_places_come_first() {
        let folder = std::env::temp_dir();
        let name = format!("xtask-blame-{}.rs", std::process::id());
        std::fs::write(folder.join(&name), TEXT).unwrap();
        let span = |word: &str, primary: bool| {
            let start = TEXT.rfind(word).unwrap();
            serde_json::json!({"file_name": name, "byte_start": start,
                "byte_end": start + 1, "is_primary": primary})
        };
        let error = |spans: &[Value]| of(&serde_json::json!({"spans": spans}), &folder);
        assert_eq!(error(&[span("a", false), span("b", true)]), [Culprit::Mutant(1)]);
        assert_eq!(error(&[span("b", false), span("f", true)]), [Culprit::Mutant(1)]);
        let outside = serde_json::json!({"spans": [span("f", true)]});
        assert_eq!(of(&outside, &folder), []);
        assert_eq!(before(&outside, &folder), Some(Culprit::Site(1)));
        std::fs::remove_file(folder.join(&name)).unwrap();
    }
}
