//! `linkspan doctor` as a program, on whatever machine this is.

use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

fn doctor(arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.arg("doctor").args(arguments).output().unwrap()
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut checks = report["checks"].as_array().unwrap().iter();
    checks.find(|check| check["check"] == name).unwrap()
}

/// The tests ran, so there are the things that they need.
#[test]
fn it_finds_what_these_tests_use() {
    let output = doctor(&["--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json(&output);
    assert_eq!(report["works"], true);
    for name in ["kernel", "/proc", "memory files", "SMB over TCP"] {
        let check = check(&report, name);
        assert_eq!(check["state"], "works", "{check}");
    }
    for check in report["checks"].as_array().unwrap() {
        let works = check["state"] == "works";
        assert_eq!(check.get("mend").is_none(), works, "{check}");
        assert_eq!(
            check.get("lost").is_some(),
            check["state"] == "less",
            "{check}"
        );
    }
    for link in report["links"].as_array().unwrap() {
        let special = ["vdpa", "vduse", "vm"]
            .iter()
            .any(|name| link["link"] == *name);
        assert_eq!(link["counts"], !special, "{link}");
    }
}

#[test]
fn the_status_is_about_what_was_named() {
    for name in ["blk", "vdpa", "vduse", "vm"] {
        let output = doctor(&[name, "--json"]);
        let report = json(&output);
        let works = report["links"][0]["state"] != "missing";
        assert_eq!(report["works"], works, "{report}");
        assert_eq!(
            output.status.code(),
            Some(if works { 0 } else { 5 }),
            "{name}"
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.contains(&format!("for {name}")), !works, "{said}");
    }
    assert_eq!(doctor(&["floppy"]).status.code(), Some(2));
}

#[test]
fn people_get_a_line_for_each_check() {
    let report = json(&doctor(&["--json"]));
    let output = doctor(&[]);
    let table = String::from_utf8(output.stdout).unwrap();
    for check in report["checks"].as_array().unwrap() {
        let name = check["check"].as_str().unwrap();
        assert!(table.contains(name), "{name} is not in\n{table}");
    }
}

/// The limits of the process itself count, not those of who started the machine.
#[test]
fn a_low_limit_is_seen() {
    let script = "ulimit -n 100; exec \"$0\" doctor blk --json";
    let output = Command::new("sh").args(["-c", script, PROGRAM]).output();
    let output = output.unwrap();
    let report = json(&output);
    let check = check(&report, "open files");
    assert_eq!(check["state"], "less");
    assert_eq!(check["found"], "100 files");
    assert_eq!(output.status.code(), Some(0));
}
