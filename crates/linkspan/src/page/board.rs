//! What a page shows of links: what there is to see of them, boiled down to numbers and words
//! of bounded length, with rates.

use std::path::PathBuf;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::inspect::{Sums, tree_of};
use crate::supervisor::PAGE;

/// Links that are shown; more are counted.
const LINKS_MAX: usize = 512;
/// Endpoints of a link, and rings of an endpoint, likewise.
const ENDPOINTS_MAX: usize = 32;
const RINGS_MAX: usize = 32;
/// Numbers of an endpoint.
const NUMBERS_MAX: usize = 32;
/// Characters of a word.
const WORD_MAX: usize = 200;

/// Those of them whose numbers make rates.
const COUNTED: [&str; 3] = ["requests", "frames", "traffic"];

/// How a link ends that does what it is told.
const IN_ORDER: &str = "it ended with status 0";

/// What belongs to no endpoint: where the screens are.
const VIEWERS: &str = "viewers";

/// The groups of an endpoint whose numbers are shown.
const GROUPS: [&str; 4] = ["requests", "frames", "traffic", "credits"];

/// Where the screens of a link are.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Place {
    /// The socket for viewers.
    pub(super) display: PathBuf,
    /// How many there are.
    pub(super) heads: u8,
    /// The monitor that takes keys and the pointer.
    pub(super) keys: Option<PathBuf>,
}

/// A link as its supervisor has it.
#[derive(Clone, Debug, Deserialize)]
struct Listed {
    link: String,
    state: String,
    pid: Option<u32>,
    starts: u64,
    last_end: Option<String>,
    viewers: Option<Place>,
}

/// What a link does in a second.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    operations: f64,
    bytes: f64,
}

/// All links, as they were heard of last.
#[derive(Debug, Default)]
pub(crate) struct Board {
    listed: Vec<Listed>,
    /// The tree of what there was to see last, and when that was.
    tree: Value,
    looked: Option<Instant>,
    rates: Vec<(String, Rates)>,
    /// How often it was looked.
    rounds: u64,
}

impl Board {
    /// The states of all links; what they do is as it was.
    pub(crate) fn list(&mut self, lines: &str) {
        let lines = lines.lines().filter_map(|it| serde_json::from_str(it).ok());
        let links = lines.filter(|it: &Listed| it.link != PAGE);
        self.listed = links.collect();
    }

    /// All that there is to see now.
    pub(crate) fn look(&mut self, lines: &str, now: Instant) {
        let Ok(tree) = tree_of(lines) else {
            return;
        };
        self.list(lines);
        let seconds = self.looked.map_or(0.0, |it| (now - it).as_secs_f64());
        let rates = self.listed.iter().map(|it| {
            let rates = rates(&self.tree[&it.link], &tree[&it.link], seconds);
            (it.link.clone(), rates)
        });
        self.rates = rates.collect();
        (self.tree, self.looked) = (tree, Some(now));
        self.rounds += 1;
    }

    /// Where the screens of a link are, if it has some.
    pub(crate) fn place(&self, link: &str) -> Option<&Place> {
        let listed = self.listed.iter().find(|it| it.link == link);
        listed?.viewers.as_ref()
    }

    /// What a page is told: `changes`, if links can be changed from there; `lost`, why
    /// nothing is heard.
    pub(crate) fn told(&self, changes: bool, lost: Option<&str>) -> String {
        let links = self.listed.iter().take(LINKS_MAX);
        let links: Vec<Value> = links.map(|link| self.link(link)).collect();
        let more = self.listed.len() - links.len();
        json!({
            "round": self.rounds,
            "changes": changes,
            "lost": lost,
            "links": links,
            "more": more,
        })
        .to_string()
    }

    fn link(&self, listed: &Listed) -> Value {
        let seen = &self.tree[&listed.link];
        // What another process did is no news of this one.
        let is_same = listed.pid.is_some() && seen["pid"].as_u64() == listed.pid.map(u64::from);
        let seen = if is_same { seen } else { &Value::Null };
        let state = match listed.state.as_str() {
            "running" if seen["answers"] == false => "silent",
            // It stopped by itself, and not in order.
            "stopped" if listed.last_end.as_deref().is_some_and(|it| it != IN_ORDER) => "failed",
            state => state,
        };
        let rates = self.rates.iter().find(|(name, _)| *name == listed.link);
        let rates = rates.map(|(_, rates)| *rates).filter(|_| is_same);
        let rates = rates.unwrap_or_default();
        let sums = Sums::of(seen);
        let inner = seen.as_object().into_iter().flatten();
        let endpoints = inner.filter(|(name, value)| value.is_object() && *name != VIEWERS);
        let endpoints: Vec<_> = endpoints.collect();
        let counts = |it: &Value| COUNTED.iter().any(|key| it[*key].is_object());
        let counts = endpoints.iter().any(|(_, it)| counts(it));
        // How workers fare is for who looks for faults of ours.
        let endpoints = endpoints.into_iter().filter(|(name, _)| *name != "workers");
        let endpoints = endpoints
            .take(ENDPOINTS_MAX)
            .map(|(name, it)| endpoint(name, it));
        json!({
            "name": word(&listed.link),
            "state": state,
            "pid": listed.pid,
            "starts": listed.starts,
            "last_end": listed.last_end.as_deref().map(word),
            "counts": counts,
            "operations": rates.operations,
            "bytes": rates.bytes,
            "in_flight": sums.in_flight,
            "room": room(seen),
            "errors": sums.errors,
            "heads": listed.viewers.as_ref().map_or(0, |it| it.heads),
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
}

fn rates(before: &Value, now: &Value, seconds: f64) -> Rates {
    // One that was started anew begins anew, and of one that was silent nothing is known.
    let same = before["pid"] == now["pid"] && before["answers"] == true && now["answers"] == true;
    if !same || seconds <= 0.0 {
        return Rates::default();
    }
    let (old, new) = (Sums::of(before), Sums::of(now));
    let rate = |old: u64, new: u64| (new.saturating_sub(old) as f64 / seconds).round();
    Rates {
        operations: rate(old.operations, new.operations),
        bytes: rate(old.bytes, new.bytes),
    }
}

/// How many requests have room in the rings of a link.
fn room(link: &Value) -> u64 {
    let inner = link.as_object().into_iter().flatten();
    let rings = inner.filter_map(|(_, it)| it.get("rings")?.as_array());
    let sizes = rings.flatten().filter(|ring| ring["enabled"] == true);
    let sizes = sizes.filter_map(|ring| ring["size"].as_u64());
    sizes.fold(0, u64::saturating_add)
}

fn endpoint(name: &str, seen: &Value) -> Value {
    let text = |key: &str| seen[key].as_str().map(word);
    let rings = seen["rings"].as_array().into_iter().flatten();
    let rings = rings.take(RINGS_MAX).map(|ring| {
        let number = |key: &str| ring[key].as_u64().unwrap_or(0);
        json!({
            "ring": number("ring"),
            "size": number("size"),
            "in_flight": number("in_flight"),
            "kicks": number("kicks"),
            "errors": number("errors"),
        })
    });
    let groups = GROUPS.iter().filter_map(|key| seen[*key].as_object());
    let numbers = groups.flatten().filter_map(|(name, it)| {
        let dropped = || {
            let causes = it.as_object()?.values().filter_map(Value::as_u64);
            Some(causes.fold(0, u64::saturating_add))
        };
        let number = it.as_u64().or_else(dropped)?;
        Some(json!([word(&name.replace('_', " ")), number]))
    });
    json!({
        "name": word(name),
        "phase": text("phase"),
        "peers": seen["generation"].as_u64(),
        "last_error": text("last_error"),
        "numbers": numbers.take(NUMBERS_MAX).collect::<Vec<_>>(),
        "rings": rings.collect::<Vec<_>>(),
    })
}

/// A word that is as long as a page has room for.
fn word(text: &str) -> String {
    text.chars().take(WORD_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(pid: u64, reads: u64, answers: bool) -> String {
        let line = json!({
            "link": "a", "state": "running", "pid": pid, "starts": 1, "last_end": null,
            "viewers": { "display": "/d", "heads": 1, "keys": null },
            "answers": answers,
            "endpoints": if answers { json!([{
                "endpoint": "disk", "phase": "running", "generation": 2,
                "requests": { "reads": reads, "read_bytes": reads << 10, "errors": 1 },
                "frames": { "dropped": { "full": 2, "unknown": 3 } },
                "rings": [{ "ring": 0, "size": 256, "enabled": true, "in_flight": 3 }],
            }]) } else { json!([]) },
        });
        format!("{line}\n")
    }

    fn told(board: &Board) -> Value {
        let told = serde_json::from_str::<Value>(&board.told(true, None)).unwrap();
        told["links"][0].clone()
    }

    #[test]
    fn a_link_is_shown_with_what_it_does() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.look(&line(7, 100, true), now);
        assert_eq!(told(&board)["operations"], 0.0);
        board.look(&line(7, 300, true), now + Duration::from_secs(2));
        let link = told(&board);
        assert_eq!(link["operations"], 100.0);
        assert_eq!(link["bytes"], 102_400.0);
        assert_eq!(link["counts"], true);
        for (key, value) in [("in_flight", 3), ("room", 256), ("errors", 1), ("heads", 1)] {
            assert_eq!(link[key], value, "{link:#}");
        }
        let endpoint = &link["endpoints"][0];
        assert_eq!(link["endpoints"].as_array().unwrap().len(), 1, "{link:#}");
        assert_eq!(endpoint["name"], "disk");
        assert_eq!(endpoint["peers"], 2);
        let numbers = endpoint["numbers"].as_array().unwrap();
        assert!(numbers.contains(&json!(["reads", 300])), "{numbers:?}");
        assert!(numbers.contains(&json!(["dropped", 5])), "{numbers:?}");
        assert_eq!(board.place("a").unwrap().display, PathBuf::from("/d"));
        assert!(board.place("b").is_none());
    }

    #[test]
    fn what_another_process_did_is_not_shown_as_what_this_one_does() {
        let (mut board, now) = (Board::default(), Instant::now());
        board.look(&line(7, 100, true), now);
        board.look(&line(7, 300, true), now + Duration::from_secs(2));
        let other = "{\"link\":\"a\",\"state\":\"pausing\",\"pid\":null,\"starts\":1,\
            \"last_end\":\"signal 9 ended it\"}\n";
        board.list(other);
        let link = told(&board);
        assert_eq!(
            (&link["state"], &link["operations"]),
            (&json!("pausing"), &json!(0.0))
        );
        assert_eq!(link["last_end"], "signal 9 ended it");
        assert_eq!(link["endpoints"], json!([]));
        board.list(&other.replace("pausing", "stopped"));
        assert_eq!(told(&board)["state"], "failed");
        board.list(
            &other
                .replace("pausing", "stopped")
                .replace("signal 9 ended it", IN_ORDER),
        );
        assert_eq!(told(&board)["state"], "stopped");
        board.look(&line(8, 5, true), now + Duration::from_secs(3));
        assert_eq!(told(&board)["operations"], 0.0);
        // Nothing is known of what a silent one does.
        board.look(&line(8, 5, false), now + Duration::from_secs(4));
        assert_eq!(told(&board)["state"], "silent");
        board.look(&line(8, 900, true), now + Duration::from_secs(5));
        assert_eq!(told(&board)["operations"], 0.0);
    }

    #[test]
    fn no_link_makes_a_page_longer_than_it_may_be() {
        let rings = vec![json!({ "ring": 1, "size": u64::MAX, "enabled": true }); 1000];
        let many: Vec<_> = (0..1000)
            .map(|it| json!({ "endpoint": "x".repeat(500) + &it.to_string(), "rings": rings }))
            .collect();
        let line = json!({
            "link": "a", "state": "running", "pid": 1, "starts": 1, "last_end": null,
            "answers": true, "endpoints": many,
        });
        let mut board = Board::default();
        board.look(&format!("{line}\n"), Instant::now());
        assert!(board.told(true, None).len() < 200_000);
        let line = |it| {
            format!("{{\"link\":\"l{it}\",\"state\":\"stopped\",\"pid\":null,\"starts\":0}}\n")
        };
        board.list(&(0..600).map(line).collect::<String>());
        let told: Value = serde_json::from_str(&board.told(false, Some("why"))).unwrap();
        assert_eq!((&told["more"], &told["lost"]), (&json!(88), &json!("why")));
        board.look("nonsense", Instant::now());
        board.list("nonsense\n[]\n");
        assert_eq!(told["links"].as_array().unwrap().len(), 512);
    }
}
