//! The rules, in the order in which they are tried.

mod blk;
mod chains;
mod net;
mod rings;
mod shared;
mod talk;
mod wrong;

use crate::{Kind, Rule};

/// Whom most rules concern.
const BOTH: &[Kind] = &[Kind::Blk, Kind::Net];

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Rule> {
    let tables = [
        talk::RULES,
        rings::RULES,
        wrong::RULES,
        shared::RULES,
        chains::RULES,
        blk::RULES,
        net::RULES,
    ];
    tables.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_and_each_has_one_rule() {
        let mut names: Vec<_> = all().map(|rule| rule.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(names.iter().all(|name| name.chars().all(plain)));
        for rule in all() {
            assert!(
                rule.says.ends_with('.') && !rule.clause.is_empty(),
                "{rule:?}"
            );
        }
    }
}
