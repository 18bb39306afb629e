//! `shown_memory vnc|watch FILE OFFSET WIDTH HEIGHT`: shows a picture in a file of /dev/shm to
//! VNC viewers or on a page, of which nobody says when it changes. It prints where, and the
//! token if there is one. For `cargo xtask bench display`.

use std::error::Error;
use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;

use linkspan_backends::display::{
    Memory, Screen, Shown, Source, SourceError, VncServer, WatchServer,
};
use linkspan_display::{FourCc, Kind, Modifier, Plane, Position, Surface};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::tcp::TcpListener;
use linkspan_sys::{PeerMemory, View};

struct Picture {
    memory: Memory,
    shown: Shown,
}

impl Source for Picture {
    fn name(&self) -> String {
        "a picture in memory".into()
    }

    fn planes(&mut self) -> Result<Vec<Shown>, SourceError> {
        Ok(vec![self.shown])
    }

    fn memory(&mut self, _: &Shown) -> Result<Memory, SourceError> {
        Ok(self.memory.clone())
    }

    fn resize(&mut self, _: u8, _: u32, _: u32) -> Result<(), SourceError> {
        Err(SourceError::Unsupported("it is as it is".into()))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [what, file, offset, width, height] = &words[..] else {
        return Err("shown_memory vnc|watch FILE OFFSET WIDTH HEIGHT".into());
    };
    let (width, height) = (width.parse()?, height.parse()?);
    let file = OpenOptions::new().read(true).write(true).open(file)?;
    let memory = PeerMemory::check(file.into())?;
    let size = u64::from(width) * u64::from(height) * 4;
    let surface = Surface {
        format: FourCc::XRGB8888,
        modifier: Modifier::LINEAR,
        width,
        height,
        stride: width * 4,
        offset: 0,
        x: 0,
        y: 0,
    };
    let plane = Plane {
        surface,
        size,
        position: Position::default(),
        hot_spot: None,
    };
    let picture = Picture {
        memory: View::of_peer(&memory, offset.parse()?, size)?.into(),
        shown: Shown {
            head: 0,
            kind: Kind::Primary,
            id: 1,
            plane,
            content: 0,
        },
    };
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    let screen = Screen::new(Box::new(picture), 0)?;
    if what == "vnc" {
        let mut server = VncServer::new(listener, screen)?;
        println!("{}", server.address()?);
        server.run(signals.as_fd())?;
    } else {
        let mut server = WatchServer::new(listener, screen)?;
        println!("{} {}", server.address()?, server.token());
        server.run(signals.as_fd())?;
    }
    Ok(())
}
