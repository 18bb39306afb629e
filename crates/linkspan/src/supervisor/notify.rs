//! What a service manager is told: that the plane is ready, reloads, lives or ends
//! (sd_notify(3)). Without one nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The variables by which a manager says what it wants. Links get none of them: they
/// would answer for the plane.
pub(super) const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// A service manager, if there is one.
#[derive(Debug)]
pub(super) struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear that we live: twice within what it allows.
    pub(super) beat: Option<Duration>,
}

impl Manager {
    /// The one that started this process.
    pub(super) fn of_this_process() -> Self {
        let variable = |name| std::env::var_os(name);
        let number = |name| variable(name).and_then(|text| text.to_str()?.parse::<u64>().ok());
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let allowed = number("WATCHDOG_USEC").filter(|us| for_us && *us >= 2);
        match variable("NOTIFY_SOCKET") {
            Some(place) => Self::at(&place, allowed.map(Duration::from_micros)),
            None => Self {
                socket: None,
                beat: None,
            },
        }
    }

    /// One that listens at `place`, and wants a sign of life within what is allowed.
    fn at(place: &OsStr, allowed: Option<Duration>) -> Self {
        let bytes = place.as_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(place),
        };
        let opened = || -> io::Result<(UnixDatagram, SocketAddr)> {
            let socket = UnixDatagram::unbound()?;
            // Whoever does not keep up holds nobody up.
            socket.set_nonblocking(true)?;
            Ok((socket, address?))
        };
        Self {
            socket: opened().ok(),
            beat: allowed.map(|allowed| allowed / 2),
        }
    }

    /// Whether there is one.
    pub(super) fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    pub(super) fn ending(&self) {
        self.tell("STOPPING=1");
    }

    pub(super) fn lives(&self) {
        self.tell("WATCHDOG=1");
    }

    fn tell(&self, text: &str) {
        if let Some((socket, address)) = &self.socket {
            // It is for the manager to miss us.
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let count = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_hears_each_thing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(path.as_os_str(), Some(Duration::from_secs(4)));
        assert_eq!(manager.beat, Some(Duration::from_secs(2)));
        manager.ready("2 links");
        assert_eq!(heard(&socket), "READY=1\nSTATUS=2 links");
        manager.reloading();
        assert!(heard(&socket).starts_with("RELOADING=1\nMONOTONIC_USEC="));
        manager.lives();
        manager.ending();
        assert_eq!(
            (heard(&socket), heard(&socket)),
            ("WATCHDOG=1".into(), "STOPPING=1".into())
        );
    }

    #[test]
    fn an_abstract_place_is_one_too() {
        let name = format!("linkspan-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Manager::at(OsStr::new(&format!("@{name}")), None).lives();
        assert_eq!(heard(&socket), "WATCHDOG=1");
    }

    /// A manager that is gone or never was is no reason to fail.
    #[test]
    fn nobody_is_told_where_nobody_listens() {
        let folder = tempfile::tempdir().unwrap();
        Manager::at(folder.path().join("none").as_os_str(), None).lives();
        Manager::at(OsStr::new(""), None).ending();
    }
}
