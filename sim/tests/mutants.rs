//! Every mutant under `sim/mutants/` still fits the code it changes, names properties that exist, and hunts with stories that
//! are accepted. Whether each is found takes builds and many runs: `muster-sim mutants`.

use muster_sim::mutants::{Ledger, Workshop, read_all};
use muster_sim::oracles;
use muster_sim::run::{AGENTS_REST, BROKEN, LIVENESS};
use muster_sim::scenario::Scenario;
use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_mutant_fits_and_names_what_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a workspace");
    let mutants = read_all(&root.join("sim/mutants")).unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert!(mutants.len() > 20, "the mutants are gone");
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("workshop");
    let shop = Workshop::new(root, &work, None).unwrap_or_else(|problem| panic!("{problem}"));
    let mut known: BTreeSet<String> = oracles::all().iter().map(|oracle| oracle.name().to_owned()).collect();
    known.extend([LIVENESS, AGENTS_REST, BROKEN].map(str::to_owned));
    for mutant in &mutants {
        let id = &mutant.id;
        shop.fits(mutant).unwrap_or_else(|problem| panic!("{id}: {problem}"));
        for oracle in &mutant.oracles {
            assert!(known.contains(oracle), "{id}: no property is called {oracle:?}: expected one of {known:#?}");
        }
        for story in &mutant.scenarios {
            let read = Scenario::read(&root.join(story));
            assert!(read.is_ok(), "{id}: {:#?}", read.err());
        }
    }
}

#[test]
fn the_document_shows_what_was_measured_of_every_mutant_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a workspace");
    let mutants = read_all(&root.join("sim/mutants")).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let ledger = Ledger::read(&root.join("sim/mutants/hunts.jsonl")).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let measured: BTreeSet<&str> = ledger.mutants().collect();
    let there: BTreeSet<&str> = mutants.iter().map(|mutant| mutant.id.as_str()).collect();
    assert_eq!(measured, there, "hunt what is new: cargo run -p muster-sim -- mutants --keep --only ID");
    let document = std::fs::read_to_string(root.join("docs/mutants.md")).expect("the document is there");
    let all = oracles::all();
    let properties: Vec<&str> = all.iter().map(|oracle| oracle.name()).chain([LIVENESS, AGENTS_REST, BROKEN]).collect();
    let written =
        Ledger::put_into(&document, &ledger.to_markdown(properties)).unwrap_or_else(|problem| panic!("{problem}"));
    assert_eq!(written, document, "docs/mutants.md differs from sim/mutants/hunts.jsonl: hunt with --keep");
}

#[test]
fn a_replacement_that_is_not_there_exactly_once_is_refused() {
    let change =
        muster_sim::mutants::Change { library: None, file: "a.rs".into(), before: "one".into(), after: "two".into() };
    assert_eq!(change.apply("there is one"), Ok("there is two".into()));
    assert!(change.apply("one and one").is_err_and(|why| why.contains("2 places")));
    assert!(change.apply("nothing").is_err());
}
