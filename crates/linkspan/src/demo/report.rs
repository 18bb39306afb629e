//! What the guest says about itself: `LINKSPAN key=value`, one to a line.
//!
//! The guest is not ours to trust: a line that is no report is passed over, a
//! value that does not read stays absent, and an absent value fails the check.

use std::collections::BTreeMap;

/// How many boots and problems are kept; a guest that reports more is broken
/// already and shall not fill memory.
const ENTRIES_MAX: usize = 64;

/// Everything that was reported, boot by boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One entry for each time that the guest came up.
    pub boots: Vec<Boot>,
    /// What the guest itself found wrong.
    pub problems: Vec<String>,
}

/// What was reported between two boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// Whether the disk already carried this run's marker.
    pub marker_found: bool,
    /// `uname -r`.
    pub kernel: Option<String>,
    /// Hardware queues of the disk.
    pub queues: Option<u16>,
    /// Size of the disk in bytes.
    pub bytes: Option<u64>,
    /// SHA-256 of the whole disk at the start of this boot, in lower-case hex.
    pub sha256: Option<String>,
    /// For each place of the plan, whether the disk held what it should.
    pub same: BTreeMap<String, bool>,
    /// What was reported of the network: keys after `net.`.
    pub net: BTreeMap<String, String>,
    /// How the boot meant to end: "reboot" or "poweroff".
    pub end: Option<String>,
}

impl Report {
    /// Takes in one line; gives its key and value if it is a report.
    pub fn take<'a>(&mut self, line: &'a str) -> Option<(&'a str, &'a str)> {
        let (key, value) = parse(line)?;
        match key {
            "boot" if self.boots.len() < ENTRIES_MAX => {
                self.boots.push(Boot {
                    marker_found: value == "2",
                    ..Boot::default()
                });
            }
            "problem" if self.problems.len() < ENTRIES_MAX => self.problems.push(value.to_owned()),
            _ => {
                if let Some(boot) = self.boots.last_mut() {
                    boot.take(key, value);
                }
            }
        }
        Some((key, value))
    }
}

impl Boot {
    fn take(&mut self, key: &str, value: &str) {
        match key {
            "kernel" => self.kernel = Some(value.to_owned()),
            "queues" => self.queues = value.parse().ok(),
            "bytes" => self.bytes = value.parse().ok(),
            "sha256" => self.sha256 = Some(value.to_owned()).filter(|hash| is_sha256(hash)),
            "end" => self.end = Some(value.to_owned()),
            _ => {
                if let Some(place) = key.strip_prefix("same.")
                    && self.same.len() < 4 * ENTRIES_MAX
                {
                    self.same.insert(place.to_owned(), value == "yes");
                }
                if let Some(key) = key.strip_prefix("net.")
                    && self.net.len() < 4 * ENTRIES_MAX
                {
                    self.net.insert(key.to_owned(), value.to_owned());
                }
            }
        }
    }
}

/// The key and value of a report line; whatever stands before the word LINKSPAN
/// belongs to somebody else, such as a kernel message without an end of line.
#[must_use]
pub fn parse(line: &str) -> Option<(&str, &str)> {
    let (_, report) = line.rsplit_once("LINKSPAN ")?;
    let (key, value) = report.trim_end().split_once('=')?;
    let is_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
    (!key.is_empty() && key.chars().all(is_key)).then_some((key, value))
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_found_among_other_text() {
        assert_eq!(parse("LINKSPAN queues=4\r"), Some(("queues", "4")));
        assert_eq!(
            parse("[ 1.0] clocksource: tscLINKSPAN same.q0-large=yes"),
            Some(("same.q0-large", "yes"))
        );
        assert_eq!(parse("LINKSPAN problem=a=b c"), Some(("problem", "a=b c")));
        for other in [
            "",
            "LINKSPAN",
            "LINKSPAN ",
            "LINKSPAN x",
            "LINKSPAN =1",
            "LINKSPAN Q=1",
            "linkspan q=1",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn values_belong_to_the_boot_that_reported_them() {
        let mut report = Report::default();
        let hash = "0f".repeat(32);
        for line in [
            "LINKSPAN queues=9",
            "LINKSPAN boot=1",
            "LINKSPAN queues=2",
            "LINKSPAN same.first=no",
            "LINKSPAN end=reboot",
            "LINKSPAN boot=2",
            "LINKSPAN queues=many",
            &format!("LINKSPAN sha256={hash}"),
            "LINKSPAN problem=dd failed",
        ] {
            report.take(line);
        }
        assert_eq!(report.problems, ["dd failed"]);
        assert_eq!(report.boots.len(), 2);
        assert_eq!(report.boots[0].queues, Some(2));
        assert!(!report.boots[0].same["first"]);
        assert!(!report.boots[0].marker_found && report.boots[1].marker_found);
        assert_eq!(
            report.boots[1].queues, None,
            "what does not read stays absent"
        );
        assert_eq!(report.boots[1].sha256.as_ref(), Some(&hash));
    }

    #[test]
    fn a_torn_hash_is_no_hash() {
        let mut report = Report::default();
        report.take("LINKSPAN boot=1");
        report.take("LINKSPAN sha256=abc");
        assert_eq!(report.boots[0].sha256, None);
    }

    #[test]
    fn a_guest_that_reports_without_end_does_not_fill_memory() {
        let mut report = Report::default();
        for n in 0..10_000 {
            report.take("LINKSPAN boot=1");
            report.take("LINKSPAN problem=x");
            report.take(&format!("LINKSPAN same.{n}=yes"));
            report.take(&format!("LINKSPAN net.{n}=x"));
        }
        assert_eq!(
            (report.boots.len(), report.problems.len()),
            (ENTRIES_MAX, ENTRIES_MAX)
        );
        assert!(
            report
                .boots
                .iter()
                .all(|boot| boot.same.len().max(boot.net.len()) <= 4 * ENTRIES_MAX)
        );
    }
}
