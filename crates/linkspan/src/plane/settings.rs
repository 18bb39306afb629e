//! What a plane says beside the options of its links: how they are kept running.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::document::{Entry, Value};
use super::problem::Problem;
use super::schema::Form;
use crate::supervisor::core::Restart;

/// Keys of a link that are the supervisor's, and no option of its command.
pub(super) const LINK_KEYS: &[&str] = &["restart", "start", "watchdog-seconds"];

/// The key by which a virtual machine says which links it has.
pub(super) const LINKS: &str = "links";

/// A key that something has, with what it is and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) form: Form,
    pub(super) values: Vec<String>,
    pub(super) origin: Origin,
}

/// Who says what a setting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The table that it is about, here.
    Given(usize),
    /// `[defaults]`, here.
    Defaults(usize),
    /// The program.
    Program,
}

impl Origin {
    pub(super) fn at(self) -> Option<usize> {
        match self {
            Self::Given(at) | Self::Defaults(at) => Some(at),
            Self::Program => None,
        }
    }
}

/// `[plane]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where `linkspan link` connects.
    pub(crate) control: Option<PathBuf>,
    /// Where the page is, if there is one.
    pub(crate) page: Option<SocketAddr>,
    /// How long links have to finish what is in flight when they are to end.
    pub(crate) drain: Duration,
    /// Where Prometheus finds metrics, if it does.
    pub(crate) metrics: Option<SocketAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            control: None,
            page: None,
            drain: Duration::from_secs(30),
            metrics: None,
        }
    }
}

/// How a link is kept running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) restart: Restart,
    /// Whether it is started with the plane, or when somebody asks for it.
    pub(crate) start: bool,
    /// How long it may take to say that it lives; `None`: as long as it likes.
    pub(crate) watchdog: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            restart: Restart::OnFailure,
            start: true,
            watchdog: Some(Duration::from_secs(60)),
        }
    }
}

impl Settings {
    /// The longest time for an end, in seconds: a day.
    const DRAIN_MAX: u64 = 86_400;

    /// From `[plane]`; what makes no sense is told of and left as it is without it.
    pub(super) fn of(entries: &[Entry], problems: &mut Vec<Problem>) -> Self {
        let mut settings = Self::default();
        for entry in entries {
            let done = match entry.key.as_str() {
                "control" => text(entry).map(|text| settings.control = Some(text.into())),
                "page" => page(entry).map(|page| settings.page = Some(page)),
                "drain-seconds" => {
                    seconds(entry, 1, Self::DRAIN_MAX).map(|drain| settings.drain = drain)
                }
                "metrics" => metrics(entry).map(|address| settings.metrics = Some(address)),
                _ => Err(Problem::new(
                    Some(entry.at),
                    format!("`{}` is no setting of a plane", entry.key),
                )
                .hint("control, page, drain-seconds, metrics")),
            };
            problems.extend(done.err());
        }
        let metrics = entries.iter().find(|entry| entry.key == "metrics");
        if let (Some(entry), None) = (metrics, &settings.control) {
            let message =
                "`metrics` are asked for at the control socket, and there is no `control`";
            problems.push(Problem::new(Some(entry.at), message.to_owned()));
        }
        settings
    }

    /// What it is, each with where it was said.
    pub(super) fn told(&self, entries: &[Entry]) -> Vec<Setting> {
        let told = |key: &str, value: String| {
            let entry = entries.iter().find(|entry| entry.key == key);
            Setting {
                key: key.to_owned(),
                form: Form::Value,
                values: vec![value],
                origin: entry.map_or(Origin::Program, |entry| Origin::Given(entry.at)),
            }
        };
        let control = self.control.iter();
        let control = control.map(|path| told("control", path.display().to_string()));
        let drain = told("drain-seconds", self.drain.as_secs().to_string());
        let page = self.page.iter().map(|page| told("page", page.to_string()));
        let metrics = self.metrics.iter();
        let metrics = metrics.map(|address| told("metrics", address.to_string()));
        control.chain(page).chain([drain]).chain(metrics).collect()
    }
}

impl Policy {
    /// The longest time for a sign of life, in seconds: a day.
    const WATCHDOG_MAX: u64 = 86_400;

    /// What it is, with who said so by the key.
    pub(super) fn told(self, origin: impl Fn(&str) -> Origin) -> [Setting; 3] {
        let told = |key: &str, form, value: String| Setting {
            key: key.to_owned(),
            form,
            values: vec![value],
            origin: origin(key),
        };
        [
            told("restart", Form::Value, self.restart.name().to_owned()),
            told("start", Form::Flag, self.start.to_string()),
            told(
                "watchdog-seconds",
                Form::Value,
                self.watchdog.map_or(0, |limit| limit.as_secs()).to_string(),
            ),
        ]
    }

    /// Takes a key of [`LINK_KEYS`].
    ///
    /// # Errors
    /// Its value makes no sense.
    pub(super) fn take(&mut self, entry: &Entry) -> Result<(), Problem> {
        match (entry.key.as_str(), &entry.value) {
            ("start", Value::Flag(start)) => self.start = *start,
            ("start", _) => return Err(wrong(entry, "true or false")),
            ("watchdog-seconds", _) => {
                let limit = seconds(entry, 0, Self::WATCHDOG_MAX)?;
                self.watchdog = Some(limit).filter(|limit| !limit.is_zero());
            }
            (_, Value::Text(word)) => {
                let all = [Restart::Always, Restart::OnFailure, Restart::Never];
                let named = all.into_iter().find(|it| it.name() == word.text);
                let named = named.ok_or_else(|| wrong(entry, "always, on-failure or never"));
                self.restart = named?;
            }
            _ => return Err(wrong(entry, "always, on-failure or never")),
        }
        Ok(())
    }
}

fn text(entry: &Entry) -> Result<&str, Problem> {
    match &entry.value {
        Value::Text(text) if !text.text.is_empty() => Ok(&text.text),
        _ => Err(wrong(entry, "text")),
    }
}

fn metrics(entry: &Entry) -> Result<SocketAddr, Problem> {
    let address = metrics_address(text(entry)?);
    address.map_err(|wanted| wrong(entry, &wanted))
}

/// Where metrics are: an address and a port, or a port of this machine alone.
pub(crate) fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    let alone = || Some((Ipv4Addr::LOCALHOST, text.parse().ok()?).into());
    let address = text.parse().ok().or_else(alone);
    address.ok_or_else(|| "an address and a port, such as 127.0.0.1:9464, or a port".to_owned())
}

/// An address of this machine alone: the page is not encrypted.
fn page(entry: &Entry) -> Result<SocketAddr, Problem> {
    let wanted = "an address of this machine alone, such as 127.0.0.1:8080";
    let address = text(entry)?.parse().ok();
    let address = address.filter(|it: &SocketAddr| it.ip().is_loopback());
    address.ok_or_else(|| wrong(entry, wanted))
}

fn seconds(entry: &Entry, min: u64, max: u64) -> Result<Duration, Problem> {
    let number = text(entry)?.parse().ok();
    let number = number.filter(|number| (min..=max).contains(number));
    let number = number.ok_or_else(|| wrong(entry, &format!("{min} to {max} seconds")))?;
    Ok(Duration::from_secs(number))
}

fn wrong(entry: &Entry, wanted: &str) -> Problem {
    let at = match &entry.value {
        Value::Text(text) => text.at,
        _ => entry.at,
    };
    let message = format!("`{}` is {}, not {wanted}", entry.key, entry.value);
    Problem::new(Some(at), message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::document;

    #[test]
    fn settings_are_read_or_told_of() {
        let settings = |text: &str| {
            let (document, mut problems) = document::parse(text);
            let settings = Settings::of(&document.plane, &mut problems);
            (settings, problems)
        };
        let (good, problems) =
            settings("[plane]\ncontrol = \"/run/c\"\npage = \"[::1]:80\"\ndrain-seconds = 5\n");
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(good.control, Some("/run/c".into()));
        assert_eq!(good.page, Some("[::1]:80".parse().unwrap()));
        assert_eq!(good.drain, Duration::from_secs(5));
        let (good, _) = settings("[plane]\ncontrol = \"/run/c\"\nmetrics = 9464\n");
        assert_eq!(good.metrics, Some(([127, 0, 0, 1], 9464).into()));
        for (text, word) in [
            (
                "[plane]\ncontrol = 1\ncontol = \"x\"\n",
                "`contol` is no setting",
            ),
            ("[plane]\ndrain-seconds = 0\n", "1 to 86400"),
            ("[plane]\ndrain-seconds = \"x\"\n", "1 to 86400"),
            ("[plane]\ndrain-seconds = true\n", "text"),
            ("[plane]\ncontrol = \"\"\n", "text"),
            ("[plane]\nmetrics = 9464\n", "there is no `control`"),
            (
                "[plane]\ncontrol = \"c\"\nmetrics = \"here\"\n",
                "or a port",
            ),
            ("[plane]\npage = \"10.0.0.1:80\"\n", "this machine alone"),
            ("[plane]\npage = \"127.0.0.1\"\n", "this machine alone"),
            ("[plane]\npage = true\n", "text"),
        ] {
            let (_, problems) = settings(text);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].message.contains(word), "{problems:?}");
        }
    }
}
