//! A supervisor's page: what the process is told that serves it, and what it may ask.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use linkspan_backends::web::new_token;
use linkspan_sys::Epoll;
use linkspan_sys::poll::Interest;
use serde::Serialize;

use super::core::{Restart, Wanted};
use super::gathering::{Gathering, PAGE_LIMIT};
use crate::display::reachable;
use crate::log;
use crate::page::feed::{Feed, Kind, Said};
use crate::plane::Policy;
use crate::serving::print;

/// What the page's process is called among links; no link of a plane can be called so.
pub(crate) const NAME: &str = "(page)";

/// Where the page is, as a line of JSON.
#[derive(Serialize)]
struct Told<'a> {
    event: &'static str,
    url: &'a str,
}

/// A supervisor's page, also while its process is not there.
#[derive(Debug)]
pub(super) struct Page {
    token: String,
    feed: Option<Feed>,
    url: Option<String>,
    /// The process has said where it listens.
    listens: bool,
    /// Answers to what it asked last, under way.
    waits: Option<Receiver<String>>,
    /// Links have changed their state, which it has not been told.
    news: bool,
}

impl Page {
    /// One whose viewers know a new token.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            token: new_token()?,
            feed: None,
            url: None,
            listens: false,
            waits: None,
            news: false,
        })
    }

    /// Its process, as the supervisor is to keep it running.
    pub(super) fn wanted(address: SocketAddr) -> Wanted {
        let address = address.to_string();
        let arguments = ["page", "--listen", &address];
        Wanted {
            name: NAME.to_owned(),
            arguments: arguments.map(OsString::from).to_vec(),
            restart: Restart::Always,
            start: true,
            first: false,
            watchdog: Policy::default().watchdog,
        }
    }

    /// A line for the next process, whose end is the answer.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(super) fn feed(&mut self, epoll: &Epoll, token: u64) -> io::Result<OwnedFd> {
        self.leave();
        let (feed, theirs) = Feed::new(&self.token)?;
        // Told of what comes, and of room where there was none.
        epoll.add(&feed, token, Interest::READ_WRITE.edge())?;
        self.feed = Some(feed);
        Ok(theirs)
    }

    /// Its process is gone, or is not heard any more.
    pub(super) fn leave(&mut self) {
        // Its descriptor is not watched any more once it is closed.
        (self.feed, self.waits) = (None, None);
        self.listens = false;
    }

    /// Where it is, for who may ask.
    pub(super) fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// What it asks. One that says what makes no sense is not heard any more; its viewers see
    /// that, and its next process does it better.
    pub(super) fn hear(&mut self) -> Vec<Said> {
        let Some(feed) = &mut self.feed else {
            return Vec::new();
        };
        let heard = feed.flush().and_then(|()| feed.hear());
        heard.unwrap_or_else(|error| {
            tracing::debug!("nothing more is heard of the page: {error}");
            self.leave();
            Vec::new()
        })
    }

    /// It listens there, which is told once. A service manager's log is no place for a token.
    pub(super) fn is_at(&mut self, address: SocketAddr, json: bool, managed: bool) {
        let url = format!("http://{}/#{}", reachable(address), self.token);
        if self.url.as_ref() != Some(&url) {
            if managed && !io::stdout().is_terminal() {
                tracing::info!("the page is at {address}; `linkspan link page` says the rest");
            } else if json {
                let event = "page";
                print(&Told { event, url: &url });
            } else {
                log::print(url.clone());
            }
            self.url = Some(url);
        }
        (self.listens, self.news) = (true, true);
    }

    /// Links have changed their state.
    pub(super) fn is_news(&mut self) {
        self.news = true;
    }

    /// A question of the page about all links: asked of these, unless the last one waits.
    pub(super) fn ask(&mut self, asked: BTreeSet<String>, now: Instant) -> Option<Gathering> {
        if self.waits.is_some() {
            return None;
        }
        let (answer, waits) = sync_channel(1);
        self.waits = Some(waits);
        Some(Gathering::within(PAGE_LIMIT, answer, asked, now))
    }

    /// Says why something is not done.
    pub(super) fn refuse(&mut self, why: &str) {
        let idle = self.feed.as_mut().filter(|feed| feed.is_idle());
        let why: String = why.chars().filter(|it| !it.is_control()).collect();
        let told = idle.map(|feed| feed.tell(Kind::Refusal, &format!("{why}\n")));
        if let Some(Err(_)) = told {
            self.leave();
        }
    }

    /// Tells what there is to tell, as far as there is room; `list` makes the list of links.
    pub(super) fn tell(&mut self, list: impl FnOnce() -> String) {
        let listens = self.listens;
        let Some(feed) = self.feed.as_mut().filter(|feed| listens && feed.is_idle()) else {
            return;
        };
        let mut told = Ok(());
        if let Some(text) = self.waits.as_ref().and_then(|it| it.try_recv().ok()) {
            self.waits = None;
            told = feed.tell(Kind::Inspect, &text);
        }
        if feed.is_idle() && std::mem::take(&mut self.news) {
            told = told.and_then(|()| feed.tell(Kind::List, &list()));
        }
        if told.is_err() {
            self.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// The kind of the next block, and its lines.
    fn block(page: &mut BufReader<UnixStream>) -> (String, String) {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(page.read_line(&mut line).unwrap() > 0);
            if line == "\n" {
                let kind = lines.remove(0);
                return (kind, lines.concat());
            }
            lines.push(line);
        }
    }

    /// A change of state is told when it is, and not with the next look at all links.
    #[test]
    fn a_change_is_told_before_anything_is_asked() {
        let epoll = Epoll::new().unwrap();
        let mut page = Page::new().unwrap();
        page.is_news();
        // Nobody is there.
        page.tell(|| panic!("nothing is listed for nobody"));
        let theirs = UnixStream::from(page.feed(&epoll, 1).unwrap());
        let mut theirs = BufReader::new(theirs);
        let token = block(&mut theirs);
        assert_eq!((token.0.as_str(), token.1.len()), ("token\n", 65));
        page.tell(|| panic!("it has not said where it is"));
        theirs.get_mut().write_all(b"at 127.0.0.1:80\n").unwrap();
        let address = "127.0.0.1:80".parse().unwrap();
        assert_eq!(page.hear(), [Said::At(address)]);
        page.is_at(address, false, true);
        let url = page.url().unwrap().to_owned();
        assert!(url.starts_with("http://127.0.0.1:80/#") && url.ends_with(token.1.trim()));
        page.tell(|| "{}\n".to_owned());
        assert_eq!(block(&mut theirs), ("list\n".into(), "{}\n".into()));
        page.tell(|| panic!("there is no news"));
        page.is_news();
        page.tell(|| "{\"x\":1}\n".to_owned());
        assert_eq!(block(&mut theirs), ("list\n".into(), "{\"x\":1}\n".into()));
        // One look at a time, whatever it asks.
        let gathering = page.ask(BTreeSet::new(), Instant::now()).unwrap();
        assert!(page.ask(BTreeSet::new(), Instant::now()).is_none());
        gathering.answer(std::iter::empty());
        page.tell(String::new);
        assert_eq!(block(&mut theirs), ("inspect\n".into(), String::new()));
        assert!(page.ask(BTreeSet::new(), Instant::now()).is_some());
        page.refuse("no\nlink");
        assert_eq!(block(&mut theirs), ("refusal\n".into(), "nolink\n".into()));
        // Its next process knows viewers by the same token.
        let next = UnixStream::from(page.feed(&epoll, 2).unwrap());
        assert_eq!(block(&mut BufReader::new(next)), token);
        assert_eq!(page.url(), Some(url.as_str()));
    }
}
