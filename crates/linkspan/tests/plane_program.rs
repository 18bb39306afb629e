//! `linkspan plane` as a program.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

fn check(file: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(["plane", "check"]).arg(file).args(options);
    command.output().unwrap()
}

fn example(name: &str) -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    root.join(name)
}

#[test]
fn a_right_plane_is_printed_with_where_each_value_comes_from() {
    let output = check(&example("host.toml"), &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |begin: &str| {
        let mut lines = text.lines();
        let line = lines.find(|line| line.starts_with(begin)).expect(begin);
        line.rsplit_once('#').unwrap().1.trim().to_owned()
    };
    assert!(line("drain-seconds = \"10\"").starts_with("line "));
    assert!(line("queues = \"4\"").starts_with("defaults, line "));
    assert_eq!(line("# queue-size = \"1024\""), "default");
    // Another plane in which all of it is said.
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("again.toml");
    fs::write(&again, &text).unwrap();
    assert_eq!(check(&again, &[]).status.code(), Some(0));
}

#[test]
fn programs_get_the_arguments_and_the_places() {
    let output = check(&example("smbdirect.toml"), &["--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["works"], true);
    let link = &report["links"][0];
    assert_eq!(link["name"], "messages");
    assert_eq!(link["arguments"][0], "smbdirect");
    let options = link["options"].as_array().unwrap();
    let option = |key: &str| options.iter().find(|it| it["key"] == key).unwrap();
    assert_eq!(option("half-open")["values"][0], "64");
    assert_eq!(option("half-open")["from"], "plane");
    assert!(option("half-open")["line"].as_u64().unwrap() > 1);
    assert_eq!(option("connections")["from"], "program");
    assert!(option("connections").get("line").is_none());
}

#[test]
fn a_wrong_plane_has_its_places_and_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.toml");
    let text = "[link.a]\ncommand = \"blk\"\nsocket-path = \"s\"\nimage = \"none.img\"\n";
    fs::write(&file, text).unwrap();
    let output = check(&file, &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("p.toml:4:1: link a: `image`: there is no"),
        "{said}"
    );
    fs::write(&file, text.replace("image", "imag")).unwrap();
    let output = check(&file, &["--json"]);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["works"], false);
    let problem = &report["problems"][0];
    assert_eq!(
        (&problem["line"], &problem["column"]),
        (&4.into(), &1.into())
    );
    assert_eq!(problem["hint"], "`image`");
    assert_eq!(
        check(&folder.path().join("none"), &[]).status.code(),
        Some(1)
    );
    let nothing = Command::new(PROGRAM).args(["plane", "check"]).output();
    assert_eq!(nothing.unwrap().status.code(), Some(2));
}
