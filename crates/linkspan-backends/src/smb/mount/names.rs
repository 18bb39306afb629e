//! Names: what a server may not have in one goes as characters of a private area, as all clients
//! of SMB have it (Services for Macintosh; `mapposix` of mount.cifs).

use std::ffi::OsStr;

use fuser::Errno;

/// Units of UTF-16 in a name, at most.
const UNITS_MAX: usize = 255;

/// Characters that mean something to a server, and what stands for them.
const MAPPED: &[(char, char)] = &[
    ('"', '\u{F020}'),
    ('*', '\u{F021}'),
    (':', '\u{F022}'),
    ('<', '\u{F023}'),
    ('>', '\u{F024}'),
    ('?', '\u{F025}'),
    ('\\', '\u{F026}'),
    ('|', '\u{F027}'),
];

/// A blank and a dot, at the end of a name.
const LAST: &[(char, char)] = &[(' ', '\u{F028}'), ('.', '\u{F029}')];

fn mapped(table: &[(char, char)], c: char) -> Option<char> {
    table.iter().find(|row| row.0 == c).map(|row| row.1)
}

fn unmapped(table: &[(char, char)], c: char) -> Option<char> {
    table.iter().find(|row| row.1 == c).map(|row| row.0)
}

/// A name of this machine as a server has it.
///
/// # Errors
/// It is too long, or no Unicode.
pub(super) fn to_server(name: &OsStr) -> Result<String, Errno> {
    let name = name.to_str().ok_or(Errno::EILSEQ)?;
    if name.encode_utf16().count() > UNITS_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let last = name.chars().count().saturating_sub(1);
    let map = |(at, c): (usize, char)| {
        let control = (c > '\0' && c < ' ').then(|| char::from_u32(0xF000 + u32::from(c)));
        let end = || mapped(LAST, c).filter(|_| at == last);
        control
            .flatten()
            .or_else(|| mapped(MAPPED, c))
            .or_else(end)
            .unwrap_or(c)
    };
    Ok(name.chars().enumerate().map(map).collect())
}

/// A name of a server as this machine has it; as it is if it would be the folder itself or the one
/// above.
pub(super) fn to_here(name: &str) -> String {
    let map = |c: char| match u32::from(c) {
        code @ 0xF001..=0xF01F => char::from_u32(code - 0xF000).unwrap_or(c),
        _ => unmapped(MAPPED, c)
            .or_else(|| unmapped(LAST, c))
            .unwrap_or(c),
    };
    let here: String = name.chars().map(map).collect();
    match here.as_str() {
        "." | ".." => name.into(),
        _ => here,
    }
}

/// A path below another one.
pub(super) fn join(folder: &str, name: &str) -> String {
    match folder {
        "" => name.into(),
        folder => format!("{folder}/{name}"),
    }
}

/// The folder of a path.
pub(super) fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::share::wire_path;
    use super::*;

    #[test]
    fn what_means_something_to_a_server_does_not_reach_it() {
        let name = to_server(OsStr::new("a:b\\c*?<>|\"\u{1} .")).unwrap();
        assert!(!name.contains([':', '\\', '*', '?', '<', '>', '|', '"', '\u{1}']));
        assert!(name.ends_with('\u{F029}') && name.contains(' '));
        assert_eq!(wire_path(&join("x", &name)).matches('\\').count(), 1);
        assert_eq!(to_here(&name), "a:b\\c*?<>|\"\u{1} .");
        assert_eq!(to_here(".\u{F029}"), ".\u{F029}");
        let long = "ä".repeat(256);
        assert_eq!(
            to_server(OsStr::new(&long)).unwrap_err(),
            Errno::ENAMETOOLONG
        );
    }

    proptest! {
        #[test]
        fn every_name_comes_back(name in "[^/\0\u{F000}-\u{F029}]{3,80}") {
            let there = to_server(OsStr::new(&name)).unwrap();
            prop_assert_eq!(to_here(&there), name);
        }
    }
}
