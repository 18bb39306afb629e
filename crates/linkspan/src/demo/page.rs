//! The demo's page: the guest's screen beside what its disk and its network do. It is the
//! page of a plane, which is fed here as a supervisor feeds it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use linkspan_backends::web::new_token;
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::{Epoll, EventFd};

use super::Error;
use super::check::Server;
use super::process::{Process, Stop, supervised, tail};
use super::serve::{LIMIT, this_program};
use crate::display::reachable;
use crate::page::feed::{Feed, Kind, Said};
use crate::plane::Viewers;
use crate::supervisor::gathering::{Gathering, PAGE_LIMIT};
use crate::supervisor::listed::Listed;
use crate::supervisor::{Line, Question};
use crate::tether::Question as Asked;

const STOP: u64 = 0;
const FEED: u64 = 1;
/// Tokens of lines begin here.
const LINES: u64 = 2;

/// A program of the demo, as its page shows it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) name: &'static str,
    pub(super) pid: u32,
    /// What is asked; `None` once it is gone.
    pub(super) line: Option<Line>,
    pub(super) viewers: Option<Viewers>,
}

/// The page's process, and who feeds it.
pub(super) struct Page {
    process: Process,
    log: PathBuf,
    stop: Arc<EventFd>,
    feeder: Option<JoinHandle<()>>,
    /// Where it is, with its token.
    pub(super) url: String,
}

impl Page {
    /// Shows these.
    ///
    /// # Errors
    /// [`Error::Page`] where there cannot be one; [`Error::Stopped`].
    pub(super) fn start(links: Vec<Link>, dir: &Path, stop: &Stop) -> Result<Self, Error> {
        let no = |error: io::Error| Error::Page {
            why: error.to_string(),
        };
        let token = new_token().map_err(no)?;
        let (feed, theirs) = Feed::new(&token).map_err(no)?;
        let log = dir.join("page.log");
        let mut command = supervised(&this_program()?);
        command
            .args(["page", "--look-only"])
            .stdin(Stdio::null())
            .stdout(Stdio::from(theirs))
            .stderr(fs::File::create(&log).map_err(Error::file("write", &log))?);
        let process = Process::spawn("linkspan page", &mut command)?;
        drop(command);
        let end = Arc::new(EventFd::new().map_err(no)?);
        let (told, at) = sync_channel(1);
        let feeder = thread::Builder::new().name("page".to_owned()).spawn({
            let end = Arc::clone(&end);
            // Without it the page says that nothing is heard.
            move || drop(serve(feed, links, &end, &told))
        });
        let mut page = Self {
            process,
            log,
            stop: end,
            feeder: Some(feeder.map_err(no)?),
            url: String::new(),
        };
        page.url = page.await_url(&at, &token, stop)?;
        Ok(page)
    }

    fn await_url(
        &mut self,
        at: &Receiver<std::net::SocketAddr>,
        token: &str,
        stop: &Stop,
    ) -> Result<String, Error> {
        let deadline = Instant::now() + LIMIT;
        loop {
            stop.check()?;
            let soon = std::time::Duration::from_millis(50);
            if let Ok(address) = at.recv_timeout(soon) {
                return Ok(format!("http://{}/#{token}", reachable(address)));
            }
            if self.process.ended()?.is_some() || Instant::now() >= deadline {
                let said = tail(&self.log);
                let why = said.lines().last().unwrap_or("it says nothing");
                let why = why.to_owned();
                return Err(Error::Page { why });
            }
        }
    }

    /// # Errors
    /// It has ended.
    pub(super) fn still_runs(&mut self) -> Result<(), Error> {
        let (process, log) = (&mut self.process, &self.log);
        Server { process, log }.still_runs()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // Without it the thread ends with the page's process.
        let told = self.stop.signal().is_ok();
        if let Some(feeder) = self.feeder.take().filter(|_| told) {
            let _ = feeder.join();
        }
    }
}

/// Who feeds a page.
struct Feeder {
    feed: Feed,
    links: Vec<Link>,
    /// What links say, under way to the page.
    gathering: Option<(Gathering, Receiver<String>)>,
}

/// Feeds a page until `end` is readable or the page is gone, and says where that is.
fn serve(
    feed: Feed,
    links: Vec<Link>,
    end: &EventFd,
    told: &SyncSender<std::net::SocketAddr>,
) -> io::Result<()> {
    let epoll = Epoll::new()?;
    epoll.add(end.as_fd(), STOP, Interest::READ)?;
    epoll.add(&feed, FEED, Interest::READ_WRITE.edge())?;
    for (token, link) in (LINES..).zip(&links) {
        if let Some(line) = &link.line {
            epoll.add(line, token, Interest::READ)?;
        }
    }
    let gathering = None;
    let mut feeder = Feeder {
        feed,
        links,
        gathering,
    };
    let mut ready = Ready::with_capacity(8);
    loop {
        let due = feeder.gathering.as_ref().map(|(it, _)| it.due());
        let pause = due.map(|due| due.saturating_duration_since(Instant::now()));
        // Not before it: the system counts whole milliseconds.
        let pause = pause.map(|it| it + std::time::Duration::from_millis(1));
        epoll.wait(&mut ready, pause)?;
        let now = Instant::now();
        for event in ready.iter() {
            match event.token {
                STOP => return Ok(()),
                FEED => feeder.asked(told, now)?,
                token => feeder.heard(token, &epoll),
            }
        }
        feeder.answer(now)?;
    }
}

impl Feeder {
    fn asked(&mut self, told: &SyncSender<std::net::SocketAddr>, now: Instant) -> io::Result<()> {
        self.feed.flush()?;
        for said in self.feed.hear()? {
            match said {
                Said::At(address) => {
                    // Once, and there is room for one.
                    let _ = told.try_send(address);
                    let list = Listed::lines(self.listed());
                    self.feed.tell(Kind::List, &list)?;
                }
                Said::Asks(Question::Inspect) if self.gathering.is_none() => {
                    let links = self.links.iter_mut();
                    let asked: BTreeSet<String> = links
                        .filter_map(|link| {
                            let asks = link.line.as_mut()?.ask(Asked::Inspect);
                            asks.then(|| link.name.to_owned())
                        })
                        .collect();
                    let (answer, waits) = sync_channel(1);
                    let gathering = Gathering::within(PAGE_LIMIT, answer, asked, now);
                    self.gathering = Some((gathering, waits));
                }
                // Nothing can be changed here.
                Said::Asks(_) => {}
            }
        }
        Ok(())
    }

    fn heard(&mut self, token: u64, epoll: &Epoll) {
        let at = usize::try_from(token - LINES).unwrap_or(usize::MAX);
        let Some(link) = self.links.get_mut(at) else {
            return;
        };
        let Some(line) = &mut link.line else {
            return;
        };
        match line.hear() {
            Ok(heard) => {
                for heard in heard {
                    if let Some((gathering, _)) = &mut self.gathering {
                        gathering.take(heard.question, link.name, &heard.text);
                    }
                }
            }
            Err(_) => {
                let _ = epoll.delete(&*line);
                link.line = None;
                if let Some((gathering, _)) = &mut self.gathering {
                    gathering.leave(link.name);
                }
            }
        }
    }

    /// Tells the page what links said, once they have or had long enough.
    fn answer(&mut self, now: Instant) -> io::Result<()> {
        let done = |(it, _): &mut (Gathering, _)| it.is_complete() || it.due() <= now;
        if let Some((gathering, waits)) = self.gathering.take_if(done) {
            gathering.answer(self.listed());
            let text = waits.try_recv().unwrap_or_default();
            self.feed.tell(Kind::Inspect, &text)?;
        }
        Ok(())
    }

    fn listed(&self) -> impl Iterator<Item = Listed> {
        self.links.iter().map(|link| Listed {
            link: link.name.to_owned(),
            state: match link.line {
                Some(_) => "running",
                None => "stopped",
            },
            pid: link.line.is_some().then_some(link.pid),
            starts: 1,
            last_end: None,
            viewers: link.viewers.clone(),
            sockets: Vec::new(),
        })
    }
}
