//! A source file with its comments, strings and characters blanked out, so that
//! rules look at code alone; and the parts of it that only tests see.

use std::ops::Range;

/// A Rust file as the rules see it.
#[derive(Debug)]
pub(super) struct Source {
    /// Its path from the root of the project.
    pub(super) path: String,
    /// The text as written.
    pub(super) text: String,
    /// The same bytes with everything but code as spaces; line ends are kept.
    pub(super) code: String,
    /// The parts of `code` under `#[cfg(test)]`.
    test_parts: Vec<Range<usize>>,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let test_parts = test_parts(&code);
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            test_parts,
        }
    }

    /// The crate that the file belongs to, by its folder's name.
    pub(super) fn package(&self) -> &str {
        self.path
            .strip_prefix("crates/")
            .unwrap_or(&self.path)
            .split('/')
            .next()
            .unwrap_or_default()
    }

    /// Whether the byte at `index` is only there for tests.
    pub(super) fn in_tests(&self, index: usize) -> bool {
        let (_, inside) = self
            .path
            .split_once(self.package())
            .unwrap_or(("", &self.path));
        inside.starts_with("/tests/")
            || inside.starts_with("/benches/")
            || inside.contains("/tests/")
            || inside.ends_with("/tests.rs")
            || self.test_parts.iter().any(|part| part.contains(&index))
    }

    /// `path:line` of the byte at `index`.
    pub(super) fn place(&self, index: usize) -> String {
        format!("{}:{}", self.path, self.line(index))
    }

    pub(super) fn line(&self, index: usize) -> usize {
        1 + self.code[..index]
            .bytes()
            .filter(|&byte| byte == b'\n')
            .count()
    }

    /// Where `word` stands in the code as a whole identifier.
    pub(super) fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.code
            .match_indices(word)
            .map(|(at, _)| at)
            .filter(move |&at| {
                let bytes = self.code.as_bytes();
                let joins = |byte: Option<&u8>| {
                    byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
                };
                !joins(at.checked_sub(1).and_then(|before| bytes.get(before)))
                    && !joins(bytes.get(at + word.len()))
            })
    }
}

/// Replaces comments, strings and character literals by spaces.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match &bytes[at..] {
            [b'/', b'/', ..] => find(bytes, at, b"\n"),
            [b'/', b'*', ..] => block_comment_end(bytes, at),
            [b'"', ..] => string_end(bytes, at + 1),
            [b'r', ..] if starts_word(bytes, at) => raw_string_end(bytes, at + 1).unwrap_or(at),
            [b'b' | b'c', b'r', ..] if starts_word(bytes, at) => {
                raw_string_end(bytes, at + 2).unwrap_or(at)
            }
            [b'\'', ..] => char_end(bytes, at).unwrap_or(at),
            _ => at,
        };
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(code).expect("only whole characters were replaced")
}

fn starts_word(bytes: &[u8], at: usize) -> bool {
    at == 0 || !(bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

/// Where `what` begins at or after `at`, or the end.
fn find(bytes: &[u8], at: usize, what: &[u8]) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.windows(what.len())
        .position(|window| window == what)
        .map_or(bytes.len(), |index| at + index)
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(bytes.len())
}

fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of a raw string whose `r` is before `at`; `None` for an identifier.
fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at..].iter().take_while(|&&byte| byte == b'#').count();
    if bytes.get(at + hashes) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    Some((find(bytes, at + hashes + 1, &close) + close.len()).min(bytes.len()))
}

/// The end of a character literal at `at`; `None` for a lifetime.
fn char_end(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at + 1)? {
        b'\\' => Some((find(bytes, at + 3, b"'") + 1).min(bytes.len())),
        _ => {
            // One character, of any length in bytes, and a quote.
            let next = (at + 2..at + 6)
                .find(|&index| bytes.get(index).is_none_or(|byte| byte & 0xc0 != 0x80))?;
            (bytes.get(next) == Some(&b'\'')).then_some(next + 1)
        }
    }
}

/// The items under `#[cfg(test)]`, each from its attribute to its end.
fn test_parts(code: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut from = 0;
    while let Some(found) = code[from..].find("#[cfg(test)]") {
        let start = from + found;
        from = item_end(code, start);
        parts.push(start..from);
    }
    parts
}

/// The end of the item that begins at `start`, attributes included: its first
/// semicolon or closing brace outside of all brackets.
fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0i32;
    for (index, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'}' => {
                depth -= 1;
                if depth <= 0 {
                    return index + 1;
                }
            }
            b';' if depth == 0 => return index + 1,
            _ => {}
        }
    }
    code.len()
}

/// From `start`, the range of the next braces and what is in them, unless a
/// semicolon outside of brackets comes first.
pub(super) fn braces(code: &str, start: usize) -> Option<Range<usize>> {
    let mut depth = 0i32;
    let mut open = None;
    for (index, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'{' if open.is_none() && depth == 0 => (open, depth) = (Some(index), 1),
            b'{' | b'(' | b'[' => depth += 1,
            b')' | b']' | b'}' => {
                depth -= 1;
                match open {
                    Some(open) if depth == 0 => return Some(open..index + 1),
                    None if depth < 0 => return None,
                    _ => {}
                }
            }
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_remains_and_every_byte_keeps_its_place() {
        let text = "let a = \"unsafe \\\" {\"; // unsafe\nlet b = 'x'; /* a /* b */ unsafe */ let c: &'a str = r#\"un\"safe\"#; let q = '\\''; let u = 'é'; f()";
        let code = blank(text);
        assert_eq!(code.len(), text.len());
        assert!(!code.contains("unsafe") && !code.contains("safe"));
        for kept in ["let a =", "let b =", "let c: &'a str =", "let q =", "f()"] {
            assert!(code.contains(kept), "{kept} in {code}");
        }
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn unfinished_text_does_not_panic() {
        for text in [
            "\"",
            "'",
            "'\\",
            "r#\"",
            "/*",
            "b\"\\",
            "br##\"x\"#",
            "#[cfg(test)]",
            "é'é",
        ] {
            let source = Source::new("crates/x/src/lib.rs", text);
            assert_eq!(source.code.len(), text.len());
        }
    }

    #[test]
    fn words_are_whole() {
        let source = Source::new("crates/x/src/lib.rs", "unsafe_code; my_unsafe; unsafe { }");
        assert_eq!(source.words("unsafe").collect::<Vec<_>>(), [24]);
    }

    #[test]
    fn test_code_is_known_by_attribute_and_by_place() {
        let text = "fn a() {}\n#[cfg(test)]\n#[path = \"x\"]\nmod tests { fn b() {} }\nfn c() {}\n#[cfg(test)]\nuse x::{d, e};\nfn f() {}";
        let source = Source::new("crates/x/src/lib.rs", text);
        let in_tests = |word: &str| source.in_tests(text.find(word).unwrap());
        assert!(in_tests("fn b") && in_tests("use x"));
        assert!(!in_tests("fn a") && !in_tests("fn c") && !in_tests("fn f"));
        for path in [
            "crates/x/tests/a.rs",
            "crates/x/src/tests.rs",
            "crates/x/src/tests/a.rs",
        ] {
            assert!(Source::new(path, "fn a() {}").in_tests(0), "{path}");
        }
        assert!(!Source::new("crates/x/src/a.rs", "fn a() {}").in_tests(0));
    }
}
