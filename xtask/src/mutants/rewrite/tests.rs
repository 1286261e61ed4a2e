use super::super::list::{Genre, Mutant};
use super::super::places::{CONSTANT, Without, find};
use super::*;

/// A mutant at the place of `mark` in the source, with its number.
fn mutant(source: &str, mark: &str, genre: Genre, replacement: &str) -> Mutant {
    let at = source.find(mark).unwrap();
    let line = source[..at].matches('\n').count() + 1;
    let column = source[..at].chars().rev().take_while(|char| *char != '\n').count() + 1;
    let json = serde_json::json!({"name": "", "file": "", "genre": format!("{genre:?}"),
        "replacement": replacement, "span": {"start": {"line": line, "column": column}}});
    serde_json::from_value(json).unwrap()
}

/// Rewrites with mutants of one genre: pairs of where it stands and the replacement. The comments are taken out.
fn rewritten(source: &str, genre: Genre, mutants: &[(&str, &str)], learned: &Learned) -> String {
    let mutants: Vec<Mutant> =
        mutants.iter().map(|(mark, text)| mutant(source, mark, genre, text)).collect();
    let numbered: Vec<(u32, &Mutant)> = (1..).zip(&mutants).collect();
    let places = find(source, &numbered).unwrap();
    assert_eq!(places.without, []);
    bare(&rewrite(source, &places.sites, learned))
}

fn bare(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("/*") {
        out.push_str(before);
        rest = after.split_once("*/").unwrap().1;
    }
    (out + rest).replace("crate::mutant::on", "on")
}

fn once(source: &str, genre: Genre, mutants: &[(&str, &str)]) -> String {
    rewritten(source, genre, mutants, &Learned::default())
}

fn anew(source: &str, genre: Genre, mutants: &[(&str, &str)]) -> String {
    let forms = [(1, Form::Anew)].into();
    rewritten(source, genre, mutants, &Learned { forms, ..Learned::default() })
}

#[test]
fn a_body_returns_the_value() {
    assert_eq!(
        once(
            "impl S { const fn f() -> u8 { g(); 5 } }",
            Genre::FnValue,
            &[("g()", "0"), ("g()", "1")]
        ),
        "impl S { const fn f() -> u8 { if on(1) { return 0; } if on(2) { return 1; } g(); 5 } }"
    );
}

#[test]
fn a_body_gives_one_of_two_iterators() {
    assert_eq!(
        once(
            "fn f() -> impl Iterator<Item = u8> { g(); h() }",
            Genre::FnValue,
            &[("g()", "empty()"), ("g()", "once(1)")]
        ),
        "fn f() -> impl Iterator<Item = u8> { if on(2) { crate::mutant::Either::Left(once(1)) } \
         else { crate::mutant::Either::Right(if on(1) { crate::mutant::Either::Left(empty()) } \
         else { crate::mutant::Either::Right({ g(); h() }) }) } }"
    );
}

#[test]
fn operands_are_written_once() {
    let binary = |source, mutants| once(source, Genre::BinaryOperator, mutants);
    assert_eq!(
        binary("fn f() { a < b }", &[("<", "=="), ("<", ">")]),
        "fn f() { (match (&(a), &(b)) { (left__, right__) => if on(1) { *left__ == *right__ } \
         else if on(2) { *left__ > *right__ } else { *left__ < *right__ } }) }"
    );
    assert_eq!(
        binary("fn f() { a + b }", &[("+", "-")]),
        "fn f() { (match ((a), (b)) { (left__, right__) => if on(1) { left__ - right__ } \
         else { left__ + right__ } }) }"
    );
    assert_eq!(
        binary("fn f() { a && b }", &[("&&", "||")]),
        "fn f() { ({ let left__ = (a); if left__ != on(1) { b } else { left__ } }) }"
    );
    assert_eq!(
        binary("fn f() { a || b }", &[("||", "&&")]),
        "fn f() { ({ let left__ = (a); if left__ == on(1) { b } else { left__ } }) }"
    );
    assert_eq!(
        binary("fn f() { a.x += b; }", &[("+=", "-=")]),
        "fn f() { (match (b) { right__ => if on(1) { a.x -= right__ } \
         else { a.x += right__ } }); }"
    );
    assert_eq!(
        once("fn f() { !a }", Genre::UnaryOperator, &[("!", "")]),
        "fn f() { (match (a) { operand__ => if on(1) { operand__ } else { !operand__ } }) }"
    );
}

#[test]
fn operands_are_written_anew_if_they_must() {
    let binary = |source, mutants| anew(source, Genre::BinaryOperator, mutants);
    assert_eq!(
        binary("fn f() { a - b + c }", &[("+", "*"), ("+", "-")]),
        "fn f() { (if on(1) { (a - b) * (c) } else if on(2) { (a - b) - (c) } \
         else { (a - b) + (c) }) }"
    );
    assert_eq!(
        binary("fn f() { a && b }", &[("&&", "||")]),
        "fn f() { (if on(1) { (a) || (b) } else { (a) && (b) }) }"
    );
    assert_eq!(
        binary("fn f() { a |= b; }", &[("|=", "&=")]),
        "fn f() { (if on(1) { a &= (b) } else { a |= (b) }); }"
    );
    assert_eq!(
        anew("fn f() { -a }", Genre::UnaryOperator, &[("-", "")]),
        "fn f() { (if on(1) { (a) } else { -(a) }) }"
    );
}

#[test]
fn arms_and_guards_ask_the_switch() {
    assert_eq!(
        once("fn f() { match x { A | B => 1, _ => 2 } }", Genre::MatchArm, &[("A", "")]),
        "fn f() { match x { A | B if !on(1) => 1, _ => 2 } }"
    );
    assert_eq!(
        once(
            "fn f() { match x { A if g => 1, _ => 2 } }",
            Genre::MatchArmGuard,
            &[("g", "true"), ("g", "false")]
        ),
        "fn f() { match x { A if (!on(2) && (on(1) || (g))) => 1, _ => 2 } }"
    );
}

#[test]
fn a_deleted_field_comes_from_the_base() {
    assert_eq!(
        once("fn f() { S { a: 1, b, ..base() } }", Genre::StructField, &[("a:", ""), ("b,", "")]),
        "fn f() { ({ let base__: S = base(); S { a: if on(1) { base__.a } else { 1 }, \
         b: if on(2) { base__.b } else { b }, ..base__ } }) }"
    );
}

#[test]
fn places_nest() {
    let source = "fn f() { match x { A if !g(a + b) => 1, _ => 2 } }";
    let mutants = [
        mutant(source, "match", Genre::FnValue, "0"),
        mutant(source, "!g", Genre::MatchArmGuard, "true"),
        mutant(source, "!g", Genre::UnaryOperator, ""),
        mutant(source, "+", Genre::BinaryOperator, "-"),
    ];
    let numbered: Vec<(u32, &Mutant)> = (1..).zip(&mutants).collect();
    let places = find(source, &numbered).unwrap();
    let learned = Learned { forms: [(4, Form::Anew)].into(), ..Learned::default() };
    assert_eq!(
        bare(&rewrite(source, &places.sites, &learned)),
        "fn f() { if on(1) { return 0; } match x { A if (on(2) || ((match \
         (g((if on(4) { (a) - (b) } else { (a) + (b) }))) { operand__ => \
         if on(3) { operand__ } else { !operand__ } }))) => 1, _ => 2 } }"
    );
}

#[test]
fn what_does_not_compile_is_left_out() {
    let source = "fn f() { a < b }";
    let mutants = [("<", "=="), ("<", ">")];
    let without = |learned| rewritten(source, Genre::BinaryOperator, &mutants, &learned);
    let one = Learned { unviable: [1].into(), forms: [(1, Form::Anew)].into() };
    assert_eq!(without(one), "fn f() { (if on(2) { (a) > (b) } else { (a) < (b) }) }");
    let both = Learned { unviable: [1, 2].into(), ..Learned::default() };
    assert_eq!(without(both), source);
    let original = Learned { forms: [(1, Form::Original)].into(), ..Learned::default() };
    assert_eq!(without(original), source);
}

#[test]
fn a_form_is_the_last_one_at_some_time() {
    let mut learned = Learned::default();
    assert!(learned.next_form(7) && learned.next_form(7) && !learned.next_form(7));
    assert_eq!(learned.forms[&7], Form::Original);
}

#[test]
fn each_place_is_marked() {
    let source = "fn f() { a < b }";
    let mutant = mutant(source, "<", Genre::BinaryOperator, ">");
    let places = find(source, &[(3, &mutant)]).unwrap();
    assert_eq!(
        rewrite(source, &places.sites, &Learned::default()),
        "fn f() { /*[s3*/(match (&(a), &(b)) { (left__, right__) => if crate::mutant::on(3) \
         { /*[m3*/*left__ > *right__/*m3]*/ } else { *left__ < *right__ } })/*s3]*/ }"
    );
}

#[test]
fn constants_and_lets_are_refused() {
    let without = |source: &str, mark: &str, text: &str| {
        let mutant = mutant(source, mark, Genre::BinaryOperator, text);
        find(source, &[(1, &mutant)]).unwrap().without
    };
    for source in [
        "const A: u8 = 1 + 2;",
        "impl S { const A: u8 = 1 + 2; }",
        "static A: u8 = 1 + 2;",
        "enum E { A = 1 + 2 }",
        "fn f() { const A: u8 = 1 + 2; }",
        "fn f() { [0; 1 + 2]; }",
        "fn f(a: [u8; 1 + 2]) {}",
        "fn f() { const { 1 + 2 } }",
    ] {
        assert_eq!(without(source, "+", "-"), [(1, Without::Untried(CONSTANT))], "{source}");
    }
    let source = "fn f() { match x { A => 1, _ if g => 2, _ if h => 3 } }";
    let mutant = mutant(source, "A", Genre::MatchArm, "");
    assert_eq!(find(source, &[(1, &mutant)]).unwrap().without, [(1, Without::Unviable)]);
    let chain = "fn f() { if let Some(a) = b && c && d {} }";
    assert_eq!(without(chain, "&& d", "||"), [(1, Without::Unviable)]);
    assert_eq!(without("const A: fn() = { fn f() { 1 + 2; } f };", "+", "-"), []);
}
