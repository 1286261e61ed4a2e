//! Rewrites a file so that each of its mutants is compiled, behind a switch.
//!
//! A site's operands are written once, because sites nest and text that doubles with each level grows without bound.
//! Comments mark each site and each choice, so that an error of the compiler is traced to its mutant.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::places::{Choice, Field, Kind, Site};

/// How a site is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// Operands are evaluated first, and written once.
    #[default]
    Once,
    /// The expression is written anew for each choice. The types of operands are found as in the original.
    Anew,
    /// As in the original.
    Original,
}

/// What the compiler has taught about forms and mutants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Learned {
    /// Forms of sites, by the number of the first mutant.
    pub(super) forms: BTreeMap<u32, Form>,
    /// Mutants that do not compile.
    pub(super) unviable: BTreeSet<u32>,
}

impl Learned {
    fn form(&self, site: &Site) -> Form {
        self.forms.get(&site.id()).copied().unwrap_or_default()
    }

    /// Gives a site its next form. Returns whether there was one.
    pub(super) fn next_form(&mut self, site: u32) -> bool {
        let form = self.forms.entry(site).or_default();
        let next = match form {
            Form::Once => Form::Anew,
            Form::Anew => Form::Original,
            Form::Original => return false,
        };
        *form = next;
        true
    }
}

/// Returns the source with its sites rewritten.
pub(super) fn rewrite(source: &str, sites: &[Site], learned: &Learned) -> String {
    Writer { source, sites, learned }.text(0..source.len(), 0)
}

/// The switch of a mutant, as an expression.
fn on(number: u32) -> String {
    format!("crate::mutant::on({number})")
}

/// Text that is compiled for one mutant only.
fn chosen(number: u32, text: &str) -> String {
    format!("/*[m{number}*/{text}/*m{number}]*/")
}

struct Writer<'a> {
    source: &'a str,
    sites: &'a [Site],
    learned: &'a Learned,
}

impl Writer<'_> {
    /// Writes a range of the source. Sites before `from` surround it.
    fn text(&self, range: Range<usize>, from: usize) -> String {
        let inside = |site: &Site| site.range.start >= range.start && site.range.end <= range.end;
        let mut order: Vec<(usize, &Site)> =
            self.sites.iter().enumerate().skip(from).filter(|(_, site)| inside(site)).collect();
        // Insertions come first, then outer sites.
        order.sort_by_key(|(index, site)| {
            let length = site.range.len();
            (site.range.start, length != 0, usize::MAX - length, *index)
        });
        let mut out = String::new();
        let mut at = range.start;
        for (index, site) in order {
            if site.range.start >= at {
                out.push_str(self.plain(at..site.range.start));
                out.push_str(&self.site(site, index + 1));
                at = site.range.end;
            }
        }
        out.push_str(self.plain(at..range.end));
        out
    }

    fn plain(&self, range: Range<usize>) -> &str {
        self.source.get(range).unwrap_or_default()
    }

    fn site(&self, site: &Site, next: usize) -> String {
        let mut choices = site.choices.clone();
        choices.retain(|choice| !self.learned.unviable.contains(&choice.number));
        let form = self.learned.form(site);
        if choices.is_empty() || form == Form::Original {
            return self.text(site.range.clone(), next);
        }
        let text = match &site.kind {
            Kind::Body => body(&choices),
            Kind::Iterator => iterator(&choices, &self.text(site.range.clone(), next)),
            Kind::Arm => {
                choices.iter().map(|choice| format!(" if !{}", on(choice.number))).collect()
            }
            Kind::Guard => guard(&choices, &self.text(site.range.clone(), next)),
            Kind::Structure { path, fields, base } => {
                self.structure(path, fields, base, &choices, next)
            }
            _ if form == Form::Once => self.once(&site.kind, &choices, next),
            _ => self.anew(&site.kind, &choices, next),
        };
        format!("/*[s{0}*/{text}/*s{0}]*/", site.id())
    }

    /// An operator whose operands are written once.
    fn once(&self, kind: &Kind, choices: &[Choice], next: usize) -> String {
        let text = |range: &Range<usize>| self.text(range.clone(), next);
        match kind {
            Kind::Compare { left, operator, right } => {
                let switch = each(choices, operator, |name| format!("*left__ {name} *right__"));
                format!(
                    "(match (&({}), &({})) {{ (left__, right__) => {switch} }})",
                    text(left),
                    text(right)
                )
            }
            Kind::Arithmetic { left, operator, right } => {
                let switch = each(choices, operator, |name| format!("left__ {name} right__"));
                format!(
                    "(match (({}), ({})) {{ (left__, right__) => {switch} }})",
                    text(left),
                    text(right)
                )
            }
            Kind::Logic { left, and, right } => {
                let switch = choices.first().map_or(String::new(), |choice| on(choice.number));
                let sign = if *and { "!=" } else { "==" };
                format!(
                    "({{ let left__ = ({}); if left__ {sign} {switch} {{ {} }} else {{ left__ }} }})",
                    text(left),
                    text(right)
                )
            }
            Kind::Assign { left, operator, right } => {
                let left = text(left);
                let switch = each(choices, operator, |name| format!("{left} {name} right__"));
                format!("(match ({}) {{ right__ => {switch} }})", text(right))
            }
            Kind::Unary { operator, operand } => {
                let switch = each(choices, operator, |name| format!("{name}operand__"));
                format!("(match ({}) {{ operand__ => {switch} }})", text(operand))
            }
            _ => String::new(),
        }
    }

    /// An operator whose whole expression is written for each choice.
    fn anew(&self, kind: &Kind, choices: &[Choice], next: usize) -> String {
        let text = |range: &Range<usize>| self.text(range.clone(), next);
        let switch = match kind {
            Kind::Compare { left, operator, right }
            | Kind::Arithmetic { left, operator, right } => {
                let (left, right) = (text(left), text(right));
                each(choices, operator, |name| format!("({left}) {name} ({right})"))
            }
            Kind::Logic { left, and, right } => {
                let (left, right) = (text(left), text(right));
                let operator = if *and { "&&" } else { "||" };
                each(choices, operator, |name| format!("({left}) {name} ({right})"))
            }
            Kind::Assign { left, operator, right } => {
                let (left, right) = (text(left), text(right));
                each(choices, operator, |name| format!("{left} {name} ({right})"))
            }
            Kind::Unary { operator, operand } => {
                let operand = text(operand);
                each(choices, operator, |name| format!("{name}({operand})"))
            }
            _ => String::new(),
        };
        format!("({switch})")
    }

    /// A structure whose base is evaluated first, and gives the deleted fields.
    fn structure(
        &self,
        path: &str,
        fields: &[Field],
        base: &Range<usize>,
        choices: &[Choice],
        next: usize,
    ) -> String {
        let mut out =
            format!("({{ let base__: {path} = {}; {path} {{ ", self.text(base.clone(), next));
        for field in fields {
            let value = self.text(field.value.clone(), next);
            let deleted = choices.iter().find(|choice| Some(choice.number) == field.number);
            let value = match deleted {
                Some(Choice { number, .. }) => {
                    let base = chosen(*number, &format!("base__.{}", field.name));
                    format!("if {} {{ {base} }} else {{ {value} }}", on(*number))
                }
                None => value,
            };
            out.push_str(&format!("{}: {value}, ", field.name));
        }
        out + "..base__ } })"
    }
}

/// A chain of `if`, with an expression for each operator, and the original one at its end.
fn each(choices: &[Choice], original: &str, expression: impl Fn(&str) -> String) -> String {
    let mut out = String::new();
    for choice in choices {
        let text = chosen(choice.number, &expression(&choice.text));
        out.push_str(&format!("if {} {{ {text} }} else ", on(choice.number)));
    }
    format!("{out}{{ {} }}", expression(original))
}

fn body(choices: &[Choice]) -> String {
    let value = |choice: &Choice| {
        let text = chosen(choice.number, &choice.text);
        format!("if {} {{ return {text}; }} ", on(choice.number))
    };
    choices.iter().map(value).collect()
}

/// Each value and the original body have a type of their own.
fn iterator(choices: &[Choice], original: &str) -> String {
    let either = |side: &str, text: &str| format!("crate::mutant::Either::{side}({text})");
    choices.iter().fold(format!("{{ {original} }}"), |rest, choice| {
        let value = either("Left", &chosen(choice.number, &choice.text));
        format!("if {} {{ {value} }} else {{ {} }}", on(choice.number), either("Right", &rest))
    })
}

fn guard(choices: &[Choice], original: &str) -> String {
    let mut out = format!("({original})");
    for Choice { number, text } in choices {
        out = match text.as_str() {
            "true" => format!("({} || {out})", on(*number)),
            _ => format!("(!{} && {out})", on(*number)),
        };
    }
    out
}

#[cfg(test)]
mod tests;
