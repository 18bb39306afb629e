//! The self-check of the network: the guest finds its address and pings from each of
//! its processors, this machine pings it and fetches from it, and the counts of the
//! switch show that every queue pair took part.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::Error;
use super::check::Finding;
use super::process::{Process, Stop};
use super::report::{Boot, Report};
use super::serve::{Counts, Form, Net, PairFrames};

/// How long the guest may take for one answer.
const LIMIT: Duration = Duration::from_secs(15);

/// Flows at least, and at most: each goes to a queue pair by its ports, which are
/// others each time, so with more of them no pair stays without one.
const FLOWS_MIN: usize = 8;
const FLOWS_MAX: usize = 64;

/// Bytes of an answer of the guest at most; it is not ours to trust.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The part of the check that is this machine's.
pub(super) struct HostSide {
    pairs: u16,
    /// The guest, where this machine reaches it.
    guest: Option<Ipv4Addr>,
    busybox: PathBuf,
    counts: Counts,
    sha256: Option<String>,
    done: Option<Done>,
}

/// What came of it.
#[derive(Debug, Default)]
struct Done {
    pinged: bool,
    fetched: usize,
    wrong: Vec<String>,
    frames: Option<Vec<PairFrames>>,
}

impl HostSide {
    pub(super) fn new(net: &Net, busybox: &Path) -> Self {
        let guest = net.addresses().map(|(_, guest)| guest);
        Self {
            pairs: net.pairs,
            guest: guest.filter(|_| matches!(net.form, Form::Tap { .. })),
            busybox: busybox.to_owned(),
            counts: net.counts(),
            sha256: None,
            done: None,
        }
    }

    /// Hears a report of the guest, which waits when it is ready to be visited.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::System`].
    pub(super) fn hear(&mut self, key: &str, value: &str, stop: &Stop) -> Result<(), Error> {
        match key {
            "net.sha256" => self.sha256 = Some(value.to_owned()),
            // The guest has pinged from each processor.
            "net.pinged" if self.done.is_none() => {
                let mut done = Done::default();
                if let Some(guest) = self.guest {
                    self.visit(guest, &mut done, stop)?;
                } else {
                    done.frames = self.counts.take(stop)?;
                }
                self.done = Some(done);
            }
            _ => {}
        }
        Ok(())
    }

    fn visit(&self, guest: Ipv4Addr, done: &mut Done, stop: &Stop) -> Result<(), Error> {
        done.pinged = self.ping(guest, stop)?;
        while done.fetched < FLOWS_MAX && done.wrong.is_empty() {
            stop.check()?;
            match fetch(guest, "/payload") {
                Ok(body) if Some(sha256(&body)) == self.sha256 => done.fetched += 1,
                Ok(body) => done.wrong.push(format!("{} bytes are others", body.len())),
                Err(error) => done.wrong.push(error.to_string()),
            }
            if done.fetched >= FLOWS_MIN {
                done.frames = self.counts.take(stop)?;
                if done.frames.as_deref().is_some_and(all_pairs_both_ways) {
                    break;
                }
            }
        }
        // The guest goes on, whatever came of it; or by itself after a while.
        if let Err(error) = fetch(guest, "/cgi-bin/done") {
            done.wrong.push(format!("the last visit: {error}"));
        }
        Ok(())
    }

    fn ping(&self, guest: Ipv4Addr, stop: &Stop) -> Result<bool, Error> {
        let mut ping = Command::new(&self.busybox);
        ping.args(["ping", "-c", "3", "-W", "5", "-w", "10"])
            .arg(guest.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut ping = Process::spawn("ping", &mut ping)?;
        let status = ping.wait_until(Instant::now() + LIMIT, stop)?;
        Ok(status.is_some_and(|status| status.success()))
    }

    /// What is right and what is not, of the guest's reports and of ours.
    pub(super) fn judge(&self, report: &Report, net: &Net) -> Vec<Finding> {
        let boots: Vec<_> = report.boots.iter().map(Network::of).collect();
        let each =
            |right: &dyn Fn(&Network<'_>) -> bool| boots.len() == 2 && boots.iter().all(right);
        let seen = |key: &str| {
            let values = boots.iter().map(|boot| boot.value(key));
            values.collect::<Vec<_>>().join(", after reboot ")
        };
        let finding = |what, ok, detail| Finding { what, ok, detail };
        let pairs = net.pairs.to_string();
        let own = net.addresses().map(|(_, guest)| guest.to_string());
        let lease = matches!(net.form, Form::Responder);
        let mut findings = vec![
            finding(
                "queue pairs of the network",
                each(&|boot| boot.value("pairs") == pairs),
                format!("{pairs} wanted, seen {}", seen("pairs")),
            ),
            finding(
                if lease { "lease" } else { "address" },
                each(&|boot| Some(boot.value("address")) == own.as_deref()),
                format!("seen {}", seen("address")),
            ),
            finding(
                "guest pings",
                each(&|boot| boot.pings().all(|answered| answered) && boot.pings().count() > 0),
                format!(
                    "{} of {} processors were answered in both boots",
                    boots
                        .iter()
                        .flat_map(Network::pings)
                        .filter(|yes| *yes)
                        .count()
                        / 2,
                    boots.iter().flat_map(Network::pings).count() / 2
                ),
            ),
        ];
        let none = Done::default();
        let done = self.done.as_ref().unwrap_or(&none);
        if self.guest.is_some() {
            let hint = "; a firewall of this machine may be in the way (--net responder)";
            let hint = if done.pinged { "" } else { hint };
            findings.push(finding(
                "guest is pinged",
                done.pinged,
                format!("3 times from this machine{hint}"),
            ));
            findings.push(finding(
                "guest is visited",
                done.wrong.is_empty() && done.fetched >= FLOWS_MIN,
                match done.wrong.first() {
                    None => format!("{} fetches with the right SHA-256", done.fetched),
                    Some(wrong) => format!("after {} fetches: {wrong}", done.fetched),
                },
            ));
        }
        findings.push(self.pairs_used(done));
        findings
    }

    fn pairs_used(&self, done: &Done) -> Finding {
        let frames = done.frames.as_deref().unwrap_or_default();
        let all = frames.len() == usize::from(self.pairs);
        let each = frames.iter().enumerate().map(|(number, pair)| {
            let PairFrames {
                from_guest,
                to_guest,
            } = pair;
            format!("{number}: {from_guest} from the guest, {to_guest} to it")
        });
        Finding {
            what: "queue pairs used",
            ok: all && all_pairs_both_ways(frames),
            detail: each.collect::<Vec<_>>().join("; "),
        }
    }
}

/// That an interface went with the program that made it.
pub(super) fn is_gone(interface: &str) -> Finding {
    let there = Path::new("/sys/class/net").join(interface).exists();
    Finding {
        what: "interface removed",
        ok: !there,
        detail: format!(
            "{interface} is {}",
            if there {
                "still there"
            } else {
                "gone, with its address"
            }
        ),
    }
}

fn all_pairs_both_ways(frames: &[PairFrames]) -> bool {
    let mut frames = frames.iter();
    frames.all(|pair| pair.from_guest > 0 && pair.to_guest > 0)
}

/// What a boot reported of the network.
struct Network<'a>(&'a BTreeMap<String, String>);

impl<'a> Network<'a> {
    fn of(boot: &'a Boot) -> Self {
        Self(&boot.net)
    }

    fn value(&self, key: &str) -> &'a str {
        self.0.get(key).map_or("nothing", String::as_str)
    }

    /// For each processor whether its pings were answered.
    fn pings(&self) -> impl Iterator<Item = bool> + use<'a> {
        let pings = self.0.iter().filter(|(key, _)| key.starts_with("ping."));
        pings.map(|(_, value)| value == "yes")
    }
}

/// Fetches a page of the guest, over a connection of its own.
fn fetch(guest: Ipv4Addr, page: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((guest, 80)), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(stream, "GET {page} HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    match end {
        Some(end) if answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200") => {
            Ok(answer.split_off(end + 4))
        }
        _ => {
            let line = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
            Err(std::io::Error::other(format!("{page}: {line:?}")))
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
