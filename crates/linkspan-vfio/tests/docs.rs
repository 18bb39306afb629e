//! The book says what the code says.

use std::fs;
use std::path::Path;

use linkspan_vfio::message::markdown;

/// Set to rewrite the pages that are made from the code.
const UPDATE_ENV: &str = "LINKSPAN_UPDATE_DOCS";

#[test]
fn page_of_vfio_user_has_the_table_of_messages() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/vfio-user.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- messages -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    let wanted = format!(
        "{before}<!-- messages -->\n{}<!-- end -->{after}",
        markdown()
    );
    if std::env::var_os(UPDATE_ENV).is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap();
    assert!(
        found == wanted,
        "docs/vfio-user.md is out of date: {UPDATE_ENV}=1 cargo test -p linkspan-vfio --test docs"
    );
}
