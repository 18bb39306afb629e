//! The screens that somebody looks at, each on a thread of its own: what holds up one holds
//! up neither the page nor others.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use linkspan_backends::display::{Entrance, GpuSource, Input, Screen, Usher, WatchServer};
use linkspan_backends::web::Guest;
use linkspan_sys::EventFd;

use super::board::Place;

/// Screens that are open at a time.
const OPEN_MAX: usize = 16;

/// A screen: of a link, and which of those that it has.
type Name = (String, u8);

#[derive(Debug)]
struct Open {
    place: Place,
    usher: Usher,
    cancel: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl Open {
    /// Has it end; nobody waits for that here.
    fn cancel(&self) {
        // Without it it ends when nobody looks any more.
        let _ = self.cancel.signal();
    }
}

/// All that are open.
#[derive(Debug, Default)]
pub(super) struct Screens(BTreeMap<Name, Open>);

impl Screens {
    /// Shows somebody a screen.
    ///
    /// # Errors
    /// Too many are open, or the system refuses.
    pub(super) fn show_in(&mut self, name: Name, place: &Place, guest: Guest) -> io::Result<()> {
        self.0.retain(|_, open| !open.thread.is_finished());
        if let Some(open) = self.0.get(&name).filter(|open| open.place != *place) {
            open.cancel();
            self.0.remove(&name);
        }
        if !self.0.contains_key(&name) {
            if self.0.len() >= OPEN_MAX {
                return Err(io::Error::other("too many screens are open"));
            }
            let open = Self::open(&name, place)?;
            self.0.insert(name.clone(), open);
        }
        if let Some(open) = self.0.get(&name) {
            open.usher.show_in(guest);
        }
        Ok(())
    }

    fn open((link, head): &Name, place: &Place) -> io::Result<Open> {
        let (usher, entrance) = Usher::new()?;
        let cancel = Arc::new(EventFd::new()?);
        let thread = thread::Builder::new().name("screen".to_owned()).spawn({
            let (link, head, place) = (link.clone(), *head, place.clone());
            let cancel = Arc::clone(&cancel);
            move || serve(&link, head, &place, entrance, &cancel)
        })?;
        let place = place.clone();
        Ok(Open {
            place,
            usher,
            cancel,
            thread,
        })
    }

    /// Ends all of them; viewers are told.
    pub(super) fn end(self) {
        self.0.values().for_each(Open::cancel);
        for (_, open) in self.0 {
            // A panic ends the process anyway.
            let _ = open.thread.join();
        }
    }
}

fn serve(link: &str, head: u8, place: &Place, entrance: Entrance, cancel: &EventFd) {
    let screen = match open(head, place) {
        Ok(screen) => screen,
        Err(why) => return entrance.turn_away(link, &why),
    };
    let served = WatchServer::behind(entrance, screen).map(|mut server| {
        // QEMU may come later.
        match place.keys.as_deref().map(Input::later) {
            Some(Ok(input)) => server.set_input(input),
            Some(Err(error)) => tracing::warn!("no keys for the screen of {link}: {error}"),
            None => {}
        }
        server.run(cancel.as_fd())
    });
    match served {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::info!("the screen of {link}: {error}"),
        Err(error) => tracing::warn!("the screen of {link}: {error}"),
    }
}

/// The screen, or why there is none.
fn open(head: u8, place: &Place) -> Result<Screen, String> {
    let source = GpuSource::connect(&place.display).map_err(|error| error.to_string())?;
    Screen::new(Box::new(source), head).map_err(|error| error.to_string())
}
