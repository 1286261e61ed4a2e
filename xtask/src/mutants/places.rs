//! Finds the expression that a mutant changes, and what belongs to it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use anyhow::{Context, Result, anyhow};
use proc_macro2::LineColumn;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::list::{Genre, Mutant, Place};

/// One of the changes that a site may get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// The mutant's number.
    pub(super) number: u32,
    /// The operator or value that replaces the original one.
    pub(super) text: String,
}

/// A field of a structure that has a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) value: Range<usize>,
    /// The mutant that deletes it.
    pub(super) number: Option<u32>,
}

/// The parts of a site. Ranges are bytes of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The start of a function's body.
    Body,
    /// The body of a function that returns an iterator of a type without a name.
    Iterator,
    /// A comparison: its operands are not moved.
    Compare { left: Range<usize>, operator: String, right: Range<usize> },
    /// An operator that takes the values of its operands.
    Arithmetic { left: Range<usize>, operator: String, right: Range<usize> },
    /// `&&` or `||`.
    Logic { left: Range<usize>, and: bool, right: Range<usize> },
    /// An operator that changes its left operand.
    Assign { left: Range<usize>, operator: String, right: Range<usize> },
    /// An operator before its operand.
    Unary { operator: String, operand: Range<usize> },
    /// The end of the pattern of an arm without a guard.
    Arm,
    /// The guard of an arm.
    Guard,
    /// A structure with a base.
    Structure { path: String, fields: Vec<Field>, base: Range<usize> },
}

/// A place of the source that is rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) range: Range<usize>,
    pub(super) kind: Kind,
    pub(super) choices: Vec<Choice>,
}

impl Site {
    /// Mutants of an iterator that give items. Their type may not be the right one.
    pub(super) fn items(&self) -> impl Iterator<Item = u32> {
        let given =
            |choice: &&Choice| self.kind == Kind::Iterator && !choice.text.contains("empty");
        self.choices.iter().filter(given).map(|choice| choice.number)
    }

    /// The number of the site's first mutant, which names the site.
    pub(super) fn id(&self) -> u32 {
        self.choices.first().map_or(0, |choice| choice.number)
    }
}

/// The sites of a file, outer ones before inner ones, and the mutants without a site, with the reason.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) sites: Vec<Site>,
    pub(super) without: Vec<(u32, Without)>,
}

/// The reason of a mutant that is compiled into a constant.
pub(super) const CONSTANT: &str = "in a constant";

/// The reason of a mutant that no rewriting has a form for.
pub(super) const NO_FORM: &str = "no form for this place";

/// Why a mutant has no site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Without {
    /// It does not compile in any form.
    Unviable,
    /// It cannot be switched, for this reason.
    Untried(&'static str),
}

/// Finds the places of a file's mutants, which come with their numbers.
pub(super) fn find(source: &str, mutants: &[(u32, &Mutant)]) -> Result<Places> {
    let file = syn::parse_file(source).map_err(|error| anyhow!("{error}")).context("parsing")?;
    let mut wanted: HashMap<(Genre, Place), Vec<Choice>> = HashMap::new();
    for (number, mutant) in mutants {
        let choice = Choice { number: *number, text: mutant.replacement.clone() };
        wanted.entry((mutant.genre, mutant.span.start)).or_default().push(choice);
    }
    let mut finder = Finder { source, wanted, constants: 0, places: Places::default() };
    finder.visit_file(&file);
    let mut places = finder.places;
    let placed = places.sites.iter().flat_map(|site| &site.choices).map(|choice| choice.number);
    let known = placed.chain(places.without.iter().map(|(number, _)| *number));
    let known: HashSet<u32> = known.collect();
    let lost = mutants.iter().filter(|(number, _)| !known.contains(number));
    places.without.extend(lost.map(|(number, _)| (*number, Without::Untried(NO_FORM))));
    Ok(places)
}

struct Finder<'a> {
    source: &'a str,
    wanted: HashMap<(Genre, Place), Vec<Choice>>,
    /// The number of surrounding expressions that the compiler computes.
    constants: usize,
    places: Places,
}

fn place(at: LineColumn) -> Place {
    Place { line: at.line, column: at.column + 1 }
}

fn range(node: &impl Spanned) -> Range<usize> {
    node.span().byte_range()
}

impl Finder<'_> {
    /// Takes the mutants of a genre that begin where `node` begins, unless they cannot be switched.
    fn take(&mut self, genre: Genre, node: &impl Spanned) -> Option<Vec<Choice>> {
        let choices = self.wanted.remove(&(genre, place(node.span().start())))?;
        if self.constants == 0 {
            return Some(choices);
        }
        self.refuse(&choices, Without::Untried(CONSTANT));
        None
    }

    fn refuse(&mut self, choices: &[Choice], reason: Without) {
        self.places.without.extend(choices.iter().map(|choice| (choice.number, reason)));
    }

    fn add(&mut self, range: Range<usize>, kind: Kind, choices: Vec<Choice>) {
        self.places.sites.push(Site { range, kind, choices });
    }

    fn text(&self, range: Range<usize>) -> String {
        self.source.get(range).unwrap_or_default().to_owned()
    }

    fn constant(&mut self, visit: impl FnOnce(&mut Self)) {
        self.constants += 1;
        visit(self);
        self.constants -= 1;
    }

    /// A function begins: what surrounds it does not make its body a constant.
    fn function(
        &mut self,
        output: &syn::ReturnType,
        block: &syn::Block,
        visit: impl FnOnce(&mut Self),
    ) {
        let constants = std::mem::take(&mut self.constants);
        if let (Some(first), Some(last)) = (block.stmts.first(), block.stmts.last())
            && let Some(choices) = self.take(Genre::FnValue, first)
        {
            let (start, end) = (range(first).start, range(last).end);
            if matches!(output, syn::ReturnType::Type(_, of) if matches!(**of, syn::Type::ImplTrait(_)))
            {
                self.add(start..end, Kind::Iterator, choices);
            } else {
                self.add(start..start, Kind::Body, choices);
            }
        }
        visit(self);
        self.constants = constants;
    }

    fn binary(&mut self, node: &syn::ExprBinary) {
        let Some(choices) = self.take(Genre::BinaryOperator, &node.op) else { return };
        let (left, right) = (range(&node.left), range(&node.right));
        let operator = self.text(range(&node.op));
        let kind = match node.op {
            syn::BinOp::And(_) | syn::BinOp::Or(_) if has_let(node) => {
                return self.refuse(&choices, Without::Unviable);
            }
            syn::BinOp::And(_) => Kind::Logic { left, and: true, right },
            syn::BinOp::Or(_) => Kind::Logic { left, and: false, right },
            syn::BinOp::Eq(_)
            | syn::BinOp::Ne(_)
            | syn::BinOp::Lt(_)
            | syn::BinOp::Le(_)
            | syn::BinOp::Gt(_)
            | syn::BinOp::Ge(_) => Kind::Compare { left, operator, right },
            _ if operator.ends_with('=') => Kind::Assign { left, operator, right },
            _ => Kind::Arithmetic { left, operator, right },
        };
        self.add(range(node), kind, choices);
    }

    fn unary(&mut self, node: &syn::ExprUnary) {
        let Some(choices) = self.take(Genre::UnaryOperator, &node.op) else { return };
        let operator = self.text(range(&node.op));
        self.add(range(node), Kind::Unary { operator, operand: range(&node.expr) }, choices);
    }

    /// A deleted arm needs another one that takes everything: without it, nothing compiles.
    fn arms(&mut self, node: &syn::ExprMatch) {
        let open = |arm: &syn::Arm| matches!(arm.pat, syn::Pat::Wild(_)) && arm.guard.is_none();
        if !node.arms.iter().any(open) {
            for arm in &node.arms {
                if let Some(choices) = self.take(Genre::MatchArm, arm) {
                    self.refuse(&choices, Without::Unviable);
                }
            }
        }
    }

    fn arm(&mut self, arm: &syn::Arm) {
        if let Some(choices) = self.take(Genre::MatchArm, arm) {
            let end = range(&arm.pat).end;
            self.add(end..end, Kind::Arm, choices);
        }
        if let Some((_, guard)) = &arm.guard
            && let Some(choices) = self.take(Genre::MatchArmGuard, guard)
        {
            self.add(range(guard), Kind::Guard, choices);
        }
    }

    fn structure(&mut self, node: &syn::ExprStruct) {
        let Some(rest) = &node.rest else { return };
        let mut choices = Vec::new();
        let mut fields = Vec::new();
        for field in &node.fields {
            let taken = self.take(Genre::StructField, field).unwrap_or_default();
            fields.push(Field {
                name: self.text(range(&field.member)),
                value: range(&field.expr),
                number: taken.first().map(|choice| choice.number),
            });
            choices.extend(taken);
        }
        if !choices.is_empty() {
            let path = self.text(range(&node.path));
            let kind = Kind::Structure { path, fields, base: range(rest) };
            self.add(range(node), kind, choices);
        }
    }
}

/// Returns whether an operand of `&&` is a `let`. No other operator can stand beside it.
fn has_let(node: &syn::ExprBinary) -> bool {
    let of = |operand: &syn::Expr| match operand {
        syn::Expr::Let(_) => true,
        syn::Expr::Binary(inner) if matches!(inner.op, syn::BinOp::And(_)) => has_let(inner),
        _ => false,
    };
    of(&node.left) || of(&node.right)
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_fn(&mut self, node: &'ast syn::ItemFn) {
        self.function(&node.sig.output, &node.block, |finder| visit::visit_item_fn(finder, node));
    }

    fn visit_impl_item_fn(&mut self, node: &'ast syn::ImplItemFn) {
        self.function(&node.sig.output, &node.block, |finder| {
            visit::visit_impl_item_fn(finder, node)
        });
    }

    fn visit_trait_item_fn(&mut self, node: &'ast syn::TraitItemFn) {
        match &node.default {
            Some(block) => self.function(&node.sig.output, block, |finder| {
                visit::visit_trait_item_fn(finder, node)
            }),
            None => visit::visit_trait_item_fn(self, node),
        }
    }

    fn visit_expr_binary(&mut self, node: &'ast syn::ExprBinary) {
        self.binary(node);
        visit::visit_expr_binary(self, node);
    }

    fn visit_expr_unary(&mut self, node: &'ast syn::ExprUnary) {
        self.unary(node);
        visit::visit_expr_unary(self, node);
    }

    fn visit_expr_match(&mut self, node: &'ast syn::ExprMatch) {
        self.arms(node);
        visit::visit_expr_match(self, node);
    }

    fn visit_arm(&mut self, node: &'ast syn::Arm) {
        self.arm(node);
        visit::visit_arm(self, node);
    }

    fn visit_expr_struct(&mut self, node: &'ast syn::ExprStruct) {
        self.structure(node);
        visit::visit_expr_struct(self, node);
    }

    fn visit_item_const(&mut self, node: &'ast syn::ItemConst) {
        self.constant(|finder| visit::visit_item_const(finder, node));
    }

    fn visit_item_static(&mut self, node: &'ast syn::ItemStatic) {
        self.constant(|finder| visit::visit_item_static(finder, node));
    }

    fn visit_impl_item_const(&mut self, node: &'ast syn::ImplItemConst) {
        self.constant(|finder| visit::visit_impl_item_const(finder, node));
    }

    fn visit_trait_item_const(&mut self, node: &'ast syn::TraitItemConst) {
        self.constant(|finder| visit::visit_trait_item_const(finder, node));
    }

    fn visit_item_enum(&mut self, node: &'ast syn::ItemEnum) {
        self.constant(|finder| visit::visit_item_enum(finder, node));
    }

    fn visit_expr_const(&mut self, node: &'ast syn::ExprConst) {
        self.constant(|finder| visit::visit_expr_const(finder, node));
    }

    fn visit_expr_repeat(&mut self, node: &'ast syn::ExprRepeat) {
        self.visit_expr(&node.expr);
        self.constant(|finder| finder.visit_expr(&node.len));
    }

    fn visit_type(&mut self, node: &'ast syn::Type) {
        self.constant(|finder| visit::visit_type(finder, node));
    }

    fn visit_generic_argument(&mut self, node: &'ast syn::GenericArgument) {
        self.constant(|finder| visit::visit_generic_argument(finder, node));
    }

    fn visit_pat(&mut self, node: &'ast syn::Pat) {
        self.constant(|finder| visit::visit_pat(finder, node));
    }
}
