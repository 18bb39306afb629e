//! The program `linkspan`: data paths between virtual machines and the world.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    linkspan::cli::main()
}
