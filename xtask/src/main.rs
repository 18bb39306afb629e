//! The project's tasks: run, test, lint.
#![forbid(unsafe_code)]

fn main() {}
