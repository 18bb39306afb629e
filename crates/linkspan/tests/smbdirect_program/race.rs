//! The race of siw at accept: a first frame that follows its reply within about 0.2 ms
//! stays in its socket until more bytes come. Our initiator gets over it, and our listener
//! does not have it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use rustix::process::Signal;

use crate::rig::{Listener, Script, answer, data, negotiate_request, program};

/// A listener as siw is: between an initiator and a listener of ours, it overlooks the
/// first bytes that follow the reply until others come.
fn overlooks(listener: &Listener) -> (std::net::SocketAddr, thread::JoinHandle<()>) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let target = listener.address;
    let between = thread::spawn(move || {
        let (mut outer, _) = socket.accept().unwrap();
        let mut inner = TcpStream::connect(target).unwrap();
        for stream in [&outer, &inner] {
            stream.set_nodelay(true).unwrap();
        }
        let mut request = [0; 32];
        outer.read_exact(&mut request).unwrap();
        inner.write_all(&request).unwrap();
        let mut reply = [0; 24];
        inner.read_exact(&mut reply).unwrap();
        outer.write_all(&reply).unwrap();
        let back = thread::spawn({
            let (mut outer, mut inner) = (outer.try_clone().unwrap(), inner.try_clone().unwrap());
            move || {
                let _ = std::io::copy(&mut inner, &mut outer);
                let _ = outer.shutdown(Shutdown::Write);
            }
        });
        // The first frame is there, and nobody looks.
        let mut first = [0; 44];
        outer.read_exact(&mut first).unwrap();
        let mut more = [0; 4096];
        let len = outer.read(&mut more).unwrap();
        assert!(len > 0, "the initiator gave up");
        inner.write_all(&first).unwrap();
        inner.write_all(&more[..len]).unwrap();
        let _ = std::io::copy(&mut outer, &mut inner);
        let _ = inner.shutdown(Shutdown::Write);
        back.join().unwrap();
    });
    (address, between)
}

#[test]
fn siw_accept_race_is_survived_by_our_initiator() {
    let listener = Listener::start(&[]);
    for _ in 0..3 {
        let (address, between) = overlooks(&listener);
        let output = program("ping")
            .arg(address.to_string())
            .args(["--count", "3", "--json"])
            .output();
        assert_eq!(answer(&output.unwrap())["round_trips"], 3);
        between.join().unwrap();
    }
    listener.stop(Signal::TERM);
}

#[test]
fn siw_accept_race_is_not_ours() {
    let listener = Listener::start(&[]);
    for number in 0..200_u32 {
        // At once, in one segment with what acknowledges the reply.
        let mut script = Script::open(listener.raw());
        if number % 2 == 0 {
            script.send(&negotiate_request());
        } else {
            // In two.
            let frame = script.frame(&negotiate_request());
            script.stream.write_all(&frame[..1]).unwrap();
            script.stream.write_all(&frame[1..]).unwrap();
        }
        assert_eq!(script.message().len(), 32);
        script.send(&data(0, 0, &number.to_le_bytes()));
        let echo = std::iter::repeat_with(|| script.message()).find(|message| message.len() > 20);
        assert_eq!(echo.unwrap()[24..], number.to_le_bytes());
    }
    listener.stop(Signal::TERM);
}
