//! The program `linkspan`.
#![forbid(unsafe_code)]

fn main() {}
