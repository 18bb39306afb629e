//! tshark, Wireshark's program without windows: a decoder that is not ours.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// What tshark says of a capture, of which it tries the heuristics of iWARP first; `None`,
/// and a word on standard error, if there is no tshark.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn read(capture: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("tshark");
    // Sun's RPC takes messages without bytes for its own, and finds them too short.
    command.args(["--disable-protocol", "rpcordma"]);
    command.args(["-o", "tcp.try_heuristic_first:TRUE", "-r"]);
    let output = match command.arg(capture).args(arguments).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("SKIP: there is no tshark (Debian package tshark)");
            return None;
        }
        output => output.expect("tshark starts"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// All values of a field, in the order of the packets; nothing if there is no tshark.
#[track_caller]
pub fn values(capture: &Path, field: &str) -> Vec<String> {
    let text = read(capture, &["-T", "fields", "-e", field]).unwrap_or_default();
    let values = text.split([',', '\n']).filter(|text| !text.is_empty());
    values.map(str::to_owned).collect()
}

/// The same of numbers, which tshark writes in either base.
///
/// # Panics
/// When a value is no number.
#[track_caller]
pub fn numbers(capture: &Path, field: &str) -> Vec<u64> {
    let number = |text: String| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let values = values(capture, field).into_iter();
    values.map(|it| number(it).expect("a number")).collect()
}

/// Every packet is understood and every checksum good: how many those are. `None` if there is
/// no tshark.
///
/// # Panics
/// When one is not.
#[track_caller]
pub fn good_checksums(capture: &Path) -> Option<usize> {
    let text = read(capture, &["-V"])?;
    let count = |what: &str| text.matches(what).count();
    let bad = [count("Bad CRC32"), count("Malformed")];
    assert_eq!(bad, [0; 2], "bad checksums and malformed packets");
    Some(count("Good CRC32"))
}
