//! The book says what the code says.

use std::fs;
use std::path::Path;

use linkspan_vmbus::channel::message;
use linkspan_vmbus::{ic, link};

/// Set to rewrite the page that is made from the code.
const UPDATE_ENV: &str = "LINKSPAN_UPDATE_DOCS";

#[test]
fn page_of_vmbus_is_the_tables_in_the_code() {
    let page = format!(
        "# The messages of VMBus\n\n\
         Made from the tables that the code works by; `LINKSPAN_UPDATE_DOCS=1 cargo test -p linkspan-vmbus --test docs` \
         writes it anew.\n\n\
         ## The control path\n\n\
         Bytes are the least that a message has, its header of 8 included.\n\n{}\n\
         ## Integration services\n\n{}\n\
         ## The socket of a host of ours\n\n{}",
        message::markdown(),
        ic::markdown(),
        link::markdown()
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/vmbus.md");
    if std::env::var_os(UPDATE_ENV).is_some() {
        fs::write(&path, &page).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "docs/vmbus.md is out of date");
}
