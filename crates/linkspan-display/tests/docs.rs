//! The book says what the code says.

use std::fs;
use std::path::Path;

use linkspan_display::{Tiling, markdown};

/// Set to rewrite the pages that are made from the code.
const UPDATE_ENV: &str = "LINKSPAN_UPDATE_DOCS";

#[test]
fn page_of_displays_has_the_table_of_formats() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/display.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- formats -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    let wanted = format!(
        "{before}<!-- formats -->\n{}<!-- end -->{after}",
        markdown()
    );
    if std::env::var_os(UPDATE_ENV).is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap();
    assert!(
        found == wanted,
        "docs/display.md is out of date: {UPDATE_ENV}=1 cargo test -p linkspan-display --test docs"
    );
}

#[test]
fn page_of_displays_has_every_tiling() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/display.md");
    let page = fs::read_to_string(&path).unwrap();
    for tiling in [Tiling::Linear, Tiling::X, Tiling::Y] {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| {tiling} |")))
            .unwrap();
        if tiling != Tiling::Linear {
            let size = format!(
                "{} bytes by {} lines",
                tiling.width_bytes(),
                tiling.height()
            );
            assert!(row.contains(&size), "{row}");
        }
    }
}
