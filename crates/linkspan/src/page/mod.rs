//! The page of a plane: its links, what they do, the screens of its guests, and buttons.
//!
//! It is a process of its own, which the supervisor starts as it does links, and the demo
//! too ([`feed`]): what talks to browsers and reads what guests draw is not who keeps links
//! running. While somebody looks it asks twice a second what there is to see; of a change
//! of state it is told.

pub(crate) mod board;
pub(crate) mod feed;
pub(crate) mod said;
mod screens;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use linkspan_backends::display::{SCREEN_SCRIPT, SCREEN_STYLE};
use linkspan_backends::web::{Event, Message, Page, Site, Web};
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::signals::{Signal, Signals};

use crate::display::{NOT_ENCRYPTED, listen};
use crate::exit::{Failure, Status};
use crate::sandbox;
use crate::supervisor::Question;
use board::Board;
use feed::{Fed, Kind, Told};
use said::Said;
use screens::Screens;

const SITE: Site = Site {
    pages: &[
        Page {
            path: "/",
            kind: "text/html; charset=utf-8",
            body: include_bytes!("page.html"),
        },
        Page {
            path: "/plane.css",
            kind: "text/css; charset=utf-8",
            body: include_bytes!("page.css"),
        },
        Page {
            path: "/plane.js",
            kind: "text/javascript; charset=utf-8",
            body: include_bytes!("page.js"),
        },
        SCREEN_SCRIPT,
        SCREEN_STYLE,
    ],
    sockets: &["/links", "/screen"],
};

/// Of [`SITE`]'s sockets.
const LINKS: usize = 0;

/// From one question to the next, while somebody looks.
const ROUND: Duration = Duration::from_millis(500);
/// Who feeds the page answers sooner, if he lives.
const SILENCE: Duration = Duration::from_millis(900);
/// How often a viewer hears that all is well, so that it knows within a second when not.
const BEAT: Duration = Duration::from_millis(300);
/// Messages of a viewer that it has not shown.
const UNSEEN_MAX: u8 = 2;

const SIGNALS: u64 = 0;
const FEED: u64 = 1;
const WEB: u64 = 2;

/// Options of `linkspan page`, which `linkspan up --page` and the demo start.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: who starts it\n\n  linkspan up examples/host.toml --page 127.0.0.1:0"
)]
pub(crate) struct Args {
    /// Where the page is
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Links cannot be changed from there
    #[arg(long)]
    look_only: bool,
}

/// Serves the page until a signal ends it, or nobody feeds it any more.
///
/// # Errors
/// With the status that the program is to end with.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let (mut fed, token) = Fed::of_this_process().map_err(|error| {
        let error = anyhow::Error::new(error).context("nobody feeds this page");
        let failure = Failure::new(Status::Usage, error);
        failure.hint("`linkspan up PLANE --page 127.0.0.1:0` starts a page")
    })?;
    let listener = listen(args.listen, false, NOT_ENCRYPTED)?;
    let web = Web::new(listener, SITE, token).context("cannot serve the page")?;
    let address = web.address().context("cannot serve the page")?;
    let epoll = Epoll::new().context("cannot wait")?;
    epoll.add(signals.as_fd(), SIGNALS, Interest::READ)?;
    epoll.add(&fed, FEED, Interest::READ)?;
    epoll.add(&web, WEB, Interest::READ)?;
    fed.say(&feed::Said::At(address))?;
    let mut server = Server {
        web,
        fed,
        changes: !args.look_only,
        board: Board::default(),
        viewers: BTreeMap::new(),
        screens: Screens::default(),
        asked: None,
        waits: false,
        is_silent: false,
    };
    sandbox::seal(sandbox::Kind::Page, &[])?;
    let served = server.serve(&epoll);
    server.web.farewell("linkspan was stopped");
    server.screens.end();
    Ok(served?)
}

#[derive(Debug)]
struct Viewer {
    /// It is here for the links; else it has not said yet for which screen.
    is_of_links: bool,
    /// It has not been told how things are.
    news: bool,
    /// Why what it asked for was not done.
    refusal: Option<String>,
    /// Messages that it has not shown.
    unseen: u8,
    /// When it was told something last.
    told: Instant,
}

struct Server {
    web: Web,
    fed: Fed,
    changes: bool,
    board: Board,
    viewers: BTreeMap<u64, Viewer>,
    screens: Screens,
    /// When it was asked last what there is to see.
    asked: Option<Instant>,
    /// The answer has not come.
    waits: bool,
    /// For so long that it is said.
    is_silent: bool,
}

impl Server {
    fn serve(&mut self, epoll: &Epoll) -> io::Result<()> {
        let mut ready = Ready::with_capacity(64);
        let mut events = Vec::new();
        loop {
            epoll.wait(&mut ready, self.pause())?;
            let tokens: Vec<u64> = ready.iter().map(|event| event.token).collect();
            if tokens.contains(&SIGNALS) {
                return Ok(());
            }
            if tokens.contains(&FEED) && !self.hear()? {
                return Ok(());
            }
            self.web.turn(&mut ready, &mut events)?;
            for event in events.drain(..) {
                self.event(event)?;
            }
            let now = Instant::now();
            self.ask(now)?;
            self.show(now);
        }
    }

    /// Until something is due that nobody tells of.
    fn pause(&self) -> Option<Duration> {
        let round = self
            .asked
            .and_then(|asked| match (self.waits, self.is_silent) {
                (false, _) => Some(asked + ROUND),
                // Then it is said that nothing is heard.
                (true, false) => Some(asked + SILENCE),
                (true, true) => None,
            });
        let looked_at = self.viewers.values().any(|it| it.is_of_links);
        let round = round.filter(|_| looked_at);
        let idle = self
            .viewers
            .values()
            .filter(|it| it.is_of_links && it.unseen == 0);
        let beat = idle.map(|viewer| viewer.told + BEAT).min();
        let first = round.into_iter().chain(beat).chain(self.web.due()).min()?;
        let left = first.saturating_duration_since(Instant::now());
        // Not before it: the system counts whole milliseconds.
        Some(left + Duration::from_micros(100))
    }

    /// Takes in what the feed brought; whether there may be more of it ever.
    fn hear(&mut self) -> io::Result<bool> {
        let told = match self.fed.hear() {
            Ok(told) => told,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        };
        for Told { kind, lines } in told {
            match kind {
                Kind::List => self.board.list(&lines),
                Kind::Inspect => {
                    self.board.look(&lines, Instant::now());
                    self.waits = false;
                }
                Kind::Refusal => {
                    let why = lines.lines().next().unwrap_or_default();
                    for viewer in self.viewers.values_mut() {
                        viewer.refusal = Some(why.to_owned());
                    }
                }
                Kind::Token => return Err(io::ErrorKind::InvalidData.into()),
            }
            self.viewers.values_mut().for_each(|it| it.news = true);
        }
        Ok(true)
    }

    fn event(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Opened { id, socket } => {
                let viewer = Viewer {
                    is_of_links: socket == LINKS,
                    news: true,
                    refusal: None,
                    unseen: 0,
                    told: Instant::now(),
                };
                self.viewers.insert(id, viewer);
            }
            Event::Said { id, text } => {
                if !self.said(id, &text)? {
                    self.web.close(id, "this is not what a page of ours says");
                }
            }
            Event::Left { id } => drop(self.viewers.remove(&id)),
        }
        Ok(())
    }

    /// Carries out what a viewer says; whether a page of ours says that now.
    fn said(&mut self, id: u64, text: &str) -> io::Result<bool> {
        let Some(viewer) = self.viewers.get_mut(&id) else {
            // It has gone on to its screen.
            return Ok(true);
        };
        match Said::parse(text) {
            Some(Said::Seen) if viewer.is_of_links && viewer.unseen > 0 => viewer.unseen -= 1,
            Some(Said::Change(verb, link)) if viewer.is_of_links && self.changes => {
                tracing::info!("asked at the page: {text}");
                let question = Question::Change(verb, link);
                self.fed.say(&feed::Said::Asks(question))?;
            }
            Some(Said::Open(head, link)) if !viewer.is_of_links => self.open(id, head, link),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn open(&mut self, id: u64, head: u8, link: String) {
        let Some(place) = self.board.place(&link).cloned() else {
            return self
                .web
                .close(id, &format!("{link} has no screen to look at"));
        };
        self.viewers.remove(&id);
        let Some(guest) = self.web.let_go(id) else {
            return;
        };
        if let Err(error) = self.screens.show_in((link.clone(), head), &place, guest) {
            tracing::warn!("the screen of {link}: {error}");
        }
    }

    /// Asks what there is to see, if somebody wants to know.
    fn ask(&mut self, now: Instant) -> io::Result<()> {
        let looked_at = self.viewers.values().any(|it| it.is_of_links);
        let is_due = self.asked.is_none_or(|asked| asked + ROUND <= now);
        if looked_at && is_due && !self.waits {
            self.fed.say(&feed::Said::Asks(Question::Inspect))?;
            (self.asked, self.waits) = (Some(now), true);
        }
        let is_silent = self.waits && self.asked.is_some_and(|asked| asked + SILENCE <= now);
        if is_silent != self.is_silent {
            self.is_silent = is_silent;
            self.viewers.values_mut().for_each(|it| it.news = true);
        }
        Ok(())
    }

    /// Tells viewers how things are, as far as they have shown what they were told.
    fn show(&mut self, now: Instant) {
        let lost = "nothing is heard from the supervisor";
        let lost = Some(lost).filter(|_| self.is_silent);
        let mut told = None;
        for (id, viewer) in &mut self.viewers {
            if !viewer.is_of_links {
                continue;
            }
            while viewer.unseen < UNSEEN_MAX {
                let text = if let Some(why) = viewer.refusal.take() {
                    serde_json::json!({ "refusal": why }).to_string()
                } else if std::mem::take(&mut viewer.news) {
                    let told = told.get_or_insert_with(|| self.board.told(self.changes, lost));
                    told.clone()
                } else {
                    break;
                };
                viewer.unseen += 1;
                viewer.told = now;
                self.web.send(*id, Message::text(text));
            }
            if viewer.unseen == 0 && viewer.told + BEAT <= now {
                viewer.told = now;
                self.web.send(*id, Message::text("{}"));
            }
        }
    }
}
