//! `docs/durability.md` names the tests that hold its promises: each of them is there.

use std::{collections::BTreeMap, path::Path};

/// All that the document names as `path::test`.
fn named() -> Vec<(String, String)> {
    let document = read("docs/durability.md");
    let code = document.split('`').skip(1).step_by(2);
    let tests = code.filter_map(|word| word.split_once(".rs::"));
    tests.map(|(path, name)| (format!("{path}.rs"), name.to_owned())).collect()
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The part of a table's row with this number.
fn cells(heading: &str, column: usize) -> Vec<(String, String)> {
    let document = read("docs/durability.md");
    let (_, section) = document.split_once(heading).expect("the section");
    let section = section.split("\n## ").next().expect("its text");
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    let cell = |row: &str, column: usize| row.split(" | ").nth(column).expect("a cell").to_owned();
    rows.map(|row| (cell(row, 0), cell(row, column))).collect()
}

#[test]
fn every_test_that_is_named_exists() {
    let mut files = BTreeMap::new();
    let named = named();
    assert!(named.len() > 60, "the document names its tests: {}", named.len());
    for (path, name) in named {
        let text = files.entry(path.clone()).or_insert_with(|| read(&path));
        assert!(text.contains(&format!("fn {name}(")), "{path} has no test {name}");
    }
}

#[test]
fn every_promise_has_a_test_and_every_lesson_a_test_or_a_reason() {
    let promises = cells("## Promises", 3);
    assert!(promises.len() >= 8, "{}", promises.len());
    for (event, tests) in promises {
        assert!(tests.contains(".rs::"), "no test: {event}");
    }
    let lessons = cells("## Where others lost", 2);
    assert!(lessons.len() >= 30, "{}", lessons.len());
    for (lesson, answer) in lessons {
        assert!(answer.contains(".rs::") || answer.contains("no test:"), "neither test nor reason: {lesson}");
    }
}
