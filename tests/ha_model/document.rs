//! The table of steps in `docs/architecture.md`: every step is in it, with functions that there are.

use std::fs;
use std::path::Path;

use super::process::Step;

/// The names in back quotes in a cell.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// A line of the table.
struct Line<'a> {
    steps: Vec<&'a str>,
    /// Functions, with the files that they are in.
    functions: Vec<(&'a str, &'a str)>,
}

fn table(text: &str) -> Vec<Line<'_>> {
    let lines = text.lines().skip_while(|line| !line.starts_with("| step | function |")).skip(2);
    let cells = lines.take_while(|line| line.starts_with('|')).map(|line| line.split(" | ").collect());
    let functions = |cell| quoted(cell).chunks(2).map(|pair| (pair[0], pair[1])).collect();
    cells.map(|cells: Vec<&str>| Line { steps: quoted(cells[0]), functions: functions(cells[1]) }).collect()
}

#[test]
fn the_table_of_steps_names_every_step_and_functions_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let table = table(&text);
    let named: Vec<&str> = table.iter().flat_map(|line| line.steps.clone()).collect();
    assert_eq!(named, Step::IN_THE_CODE.map(|step| format!("{step:?}")));
    for Line { steps, functions } in table {
        assert!(!functions.is_empty(), "{steps:?}");
        for (function, file) in functions {
            let source = fs::read_to_string(root.join(file)).unwrap();
            let name = function.rsplit("::").next().unwrap();
            assert!(source.contains(&format!("fn {name}(")), "{file} has no function {function}");
        }
    }
}

#[test]
fn all_steps_but_those_of_the_model_alone_are_in_the_code() {
    let of_the_model = [Step::CutTail, Step::Idle, Step::Ended, Step::Refused];
    assert_eq!(Step::IN_THE_CODE.len() + of_the_model.len(), Step::Refused as usize + 1);
    assert!(Step::IN_THE_CODE.is_sorted_by(|one, other| one < other), "no step twice");
    assert!(of_the_model.iter().all(|step| !Step::IN_THE_CODE.contains(step)));
}
