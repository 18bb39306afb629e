//! The tree of all that there is to see: links, their endpoints, and what those have.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};

/// Steps of a path at most.
const DEPTH_MAX: usize = 16;

/// An answer that makes no tree.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The supervisor does not tell.
    #[error("{0}")]
    Refused(String),
    /// A line is no link.
    #[error("the supervisor said {0:?}")]
    Line(String),
}

/// The tree of a supervisor's answer: a line for each link.
pub(crate) fn of(answer: &str) -> Result<Value, Error> {
    let mut links = Map::new();
    for line in answer.lines() {
        let broken = || Error::Line(line.chars().take(200).collect());
        let mut value: Value = serde_json::from_str(line).map_err(|_| broken())?;
        if let Some(why) = value["error"].as_str() {
            return Err(Error::Refused(why.to_owned()));
        }
        let link = value.as_object_mut().ok_or_else(broken)?;
        let Some(Value::String(name)) = link.remove("link") else {
            return Err(broken());
        };
        let Some(Value::Array(endpoints)) = link.remove("endpoints") else {
            return Err(broken());
        };
        let mut names = BTreeMap::new();
        for endpoint in endpoints {
            add(link, endpoint, &mut names);
        }
        links.insert(name, value);
    }
    Ok(Value::Object(links))
}

/// Puts an endpoint into its link, by its name; no name hides what the supervisor says.
/// `next` is how often each name is there, so that many of one name are not counted each time.
fn add(link: &mut Map<String, Value>, mut endpoint: Value, next: &mut BTreeMap<String, u32>) {
    let Some(inner) = endpoint.as_object_mut() else {
        return;
    };
    let name = match inner.remove("endpoint") {
        Some(Value::String(name)) => name,
        _ => "endpoint".to_owned(),
    };
    let number = next.entry(name.clone()).or_default();
    loop {
        *number += 1;
        let free = match *number {
            1 => name.clone(),
            _ => format!("{name}#{number}"),
        };
        if !link.contains_key(&free) {
            link.insert(free, endpoint);
            return;
        }
    }
}

/// What a path leads to. Names may have slashes themselves: the longest one that fits is
/// taken.
pub(super) fn descend<'a>(tree: &'a Value, path: &str) -> Option<&'a Value> {
    step(tree, path.trim_matches('/'), DEPTH_MAX)
}

fn step<'a>(tree: &'a Value, path: &str, depth: usize) -> Option<&'a Value> {
    if path.is_empty() {
        return Some(tree);
    }
    let depth = depth.checked_sub(1)?;
    let rest = |name: &str| match path.strip_prefix(name)? {
        "" => Some(""),
        rest => rest.strip_prefix('/'),
    };
    match tree {
        Value::Object(inner) => {
            let mut names: Vec<_> = inner.keys().collect();
            names.sort_by_key(|name| std::cmp::Reverse(name.len()));
            let mut found = names.into_iter().filter_map(|name| {
                let rest = rest(name)?;
                step(&inner[name], rest, depth)
            });
            found.next()
        }
        Value::Array(inner) => {
            let (number, rest) = path.split_once('/').unwrap_or((path, ""));
            step(inner.get(number.parse::<usize>().ok()?)?, rest, depth)
        }
        _ => None,
    }
}

/// For people: a line for each thing, what belongs to it further to the right.
pub(super) fn shown(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(inner) => fields(&mut text, inner, 0),
        Value::Array(list) => items(&mut text, list, 0),
        other => text = plain(other) + "\n",
    }
    text
}

fn fields(text: &mut String, inner: &Map<String, Value>, depth: usize) {
    for (name, value) in inner {
        let name = clean(name);
        match value {
            Value::Null => {}
            Value::Object(inner) => {
                let _ = writeln!(text, "{:width$}{name}", "", width = 2 * depth);
                fields(text, inner, depth + 1);
            }
            Value::Array(list) if list.iter().any(Value::is_object) => {
                let _ = writeln!(text, "{:width$}{name}", "", width = 2 * depth);
                items(text, list, depth + 1);
            }
            other => {
                let _ = writeln!(
                    text,
                    "{:width$}{name}: {}",
                    "",
                    plain(other),
                    width = 2 * depth
                );
            }
        }
    }
}

/// Things of a kind, one a line.
fn items(text: &mut String, list: &[Value], depth: usize) {
    for value in list {
        let line = match value {
            Value::Object(inner) => {
                let fields = inner.iter().filter(|(_, value)| !value.is_null());
                let fields =
                    fields.map(|(name, value)| format!("{} {}", clean(name), plain(value)));
                fields.collect::<Vec<_>>().join(", ")
            }
            other => plain(other),
        };
        let _ = writeln!(text, "{:width$}{line}", "", width = 2 * depth);
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => clean(text),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => clean(&other.to_string()),
    }
}

/// What links say goes to a terminal, without control characters.
fn clean(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "{\"link\":\"a\",\"state\":\"running\",\"answers\":true,\"endpoints\":[\
        {\"endpoint\":\"vhost-user:/tmp/s\",\"phase\":\"running\",\"features\":[\"MQ\",\"RO\"],\
        \"rings\":[{\"ring\":0,\"in_flight\":3},{\"ring\":1,\"in_flight\":4}]},\
        {\"endpoint\":\"state\",\"x\":1},{\"endpoint\":\"vhost-user:/tmp/s\"},7]}\n\
        {\"link\":\"b\",\"state\":\"stopped\",\"pid\":null,\"answers\":false,\"endpoints\":[]}\n";

    #[test]
    fn a_path_leads_to_a_part_of_the_tree() {
        let tree = of(ANSWER).unwrap();
        for (path, value) in [
            ("a/state", Some("\"running\"")),
            ("/b/answers/", Some("false")),
            ("a/vhost-user:/tmp/s/rings/1/in_flight", Some("4")),
            ("a/vhost-user:/tmp/s/rings/2", None),
            ("a/vhost-user:/tmp/s#2", Some("{}")),
            ("a/state#2/x", Some("1")),
            ("c", None),
            ("a/state/x", None),
        ] {
            let found = descend(&tree, path).map(ToString::to_string);
            assert_eq!(found.as_deref(), value, "{path}");
        }
        assert_eq!(descend(&tree, ""), Some(&tree));
    }

    #[test]
    fn people_read_it_line_by_line() {
        let tree = of(ANSWER).unwrap();
        let text = shown(&tree);
        for line in [
            "a\n",
            "  state: running\n",
            "    features: MQ RO\n",
            "      in_flight 3, ring 0\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert!(!text.contains("pid"));
        let rings = descend(&tree, "a/vhost-user:/tmp/s/rings").unwrap();
        assert_eq!(shown(rings).lines().count(), 2);
    }

    /// Ours: endpoints of one name were counted anew for each of them, for hours if a link
    /// said so many of them as an answer holds.
    #[test]
    fn endpoints_of_one_name_are_counted_once() {
        let endpoints = vec!["{\"endpoint\":\"a\"}"; 100_000].join(",");
        let answer = format!("{{\"link\":\"l\",\"endpoints\":[{endpoints}]}}\n");
        let tree = of(&answer).unwrap();
        assert_eq!(tree["l"].as_object().unwrap().len(), 100_000);
        assert_eq!(tree["l"]["a#100000"], serde_json::json!({}));
    }

    /// A link that is under somebody else's hand says what it likes.
    #[test]
    fn what_links_say_does_nothing_to_the_terminal_or_the_supervisors_words() {
        let answer = "{\"link\":\"a\",\"state\":\"running\",\"endpoints\":[\
            {\"endpoint\":\"state\",\"\\u001b[2J\":\"\\u001b[2J\"}]}\n";
        let tree = of(answer).unwrap();
        assert_eq!(tree["a"]["state"], "running");
        assert!(!shown(&tree).contains('\u{1b}'));
        for answer in [
            "x\n",
            "[]\n",
            "{}\n",
            "{\"link\":1,\"endpoints\":[]}\n",
            "{\"link\":\"a\"}\n",
        ] {
            assert!(matches!(of(answer), Err(Error::Line(_))), "{answer}");
        }
        let refused = of("{\"kind\":\"error\",\"error\":\"no\"}\n");
        assert_eq!(refused, Err(Error::Refused("no".into())));
    }
}
