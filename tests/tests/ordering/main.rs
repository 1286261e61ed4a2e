//! The ordering contract: every interleaving of the short mode keeps I1 to I8. S1 to S32 are exercised, the controls
//! are caught, and `ORDERING.md` matches the result.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that meets the unexpected must stop")]

use iommud_tests::explore::stages;

#[test]
fn the_contract_holds_and_the_table_says_so() {
    let report = stages::run(false).unwrap_or_else(|found| panic!("{found}"));
    println!("{}", report.words());
    assert_eq!(report.missing(), Vec::<usize>::new(), "scenarios that nothing exercised");
    assert!(report.total.interleavings > 5_000 && report.swept().injected() > 500);
    assert!(report.exhausted.owed > 0, "no end of life left work that was seen");
    let written = include_str!("../../ORDERING.md");
    let said = report.markdown();
    let difference = written.lines().zip(said.lines()).find(|(written, said)| written != said);
    assert_eq!(
        difference, None,
        "ORDERING.md is not what this run says: cargo xtask explore --write"
    );
    assert_eq!(written.lines().count(), said.lines().count());
}
