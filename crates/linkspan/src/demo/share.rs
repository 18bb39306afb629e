//! The guest's disk, as a file of this machine or on a share: `linkspan blk`, and for a share
//! `linkspan smb serve`, which it reaches over SMB Direct.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::Value;

use super::Error;
use super::check::{Finding, Server};
use super::process::{Process, Stop, tail};
use super::serve::{LIMIT, Served, reports, spawn, text};

/// Who may use the share; the password is another one each time.
const USER: &str = "demo";

/// The name of the share.
const SHARE: &str = "disks";

/// Who serves the guest's disk.
pub(super) struct GuestDisk {
    pub(super) blk: Served,
    share: Option<Share>,
}

/// A server whose share has the image.
struct Share {
    process: Process,
    log: PathBuf,
    events: PathBuf,
}

impl GuestDisk {
    /// Serves an image as a disk, with a server of shares between if it is to be on one.
    ///
    /// # Errors
    /// [`Error::Ended`] and [`Error::NoSocket`] where a program does not serve,
    /// [`Error::Stopped`], [`Error::File`], [`Error::System`].
    pub(super) fn start(
        image: &Path,
        on_share: bool,
        queues: u16,
        dir: &Path,
        stop: &Stop,
    ) -> Result<Self, Error> {
        if !on_share {
            eprintln!("linkspan: serving {} with linkspan blk", image.display());
            let blk = blk(&["--image", &text(image)], queues, dir, stop)?;
            return Ok(Self { blk, share: None });
        }
        let credentials = credentials(dir)?;
        let (share, url) = Share::start(image, &credentials, dir, stop)?;
        eprintln!(
            "linkspan: serving {} with linkspan smb serve, and {url} with linkspan blk",
            image.display()
        );
        let options = [
            "--transport",
            "rdma",
            "--credentials",
            &text(&credentials),
            "--image",
            &url,
        ];
        Ok(Self {
            blk: blk(&options, queues, dir, stop)?,
            share: Some(share),
        })
    }

    /// All that has to run as long as the guest does.
    pub(super) fn servers(&mut self) -> Vec<Server<'_>> {
        let share = self.share.as_mut().map(|share| Server {
            process: &mut share.process,
            log: &share.log,
        });
        [self.blk.server()].into_iter().chain(share).collect()
    }

    /// What they said, for somebody who has to find out why a check failed.
    pub(super) fn show_log(&self) {
        self.blk.show_log();
        if let Some(share) = &self.share {
            for line in tail(&share.log).lines() {
                eprintln!("{}: {line}", share.process.name());
            }
        }
    }

    /// Has them end, as they should, and looks at how the data went.
    ///
    /// # Errors
    /// [`Error::System`] where an end cannot be collected.
    pub(super) fn end(&mut self) -> Result<Vec<Finding>, Error> {
        let mut findings = vec![end("end of linkspan blk", &mut self.blk.process)?];
        if let Some(share) = &mut self.share {
            findings.push(end("end of linkspan smb serve", &mut share.process)?);
            findings.push(by_rdma(&reports(&share.events, "ended")));
        }
        Ok(findings)
    }
}

/// Has a program end, as it should.
///
/// # Errors
/// [`Error::System`] where its end cannot be collected.
pub(super) fn end(what: &'static str, process: &mut Process) -> Result<Finding, Error> {
    let status = process.stop()?;
    Ok(Finding {
        what,
        ok: status.success(),
        detail: format!("asked to stop by SIGTERM: {status}"),
    })
}

/// Whether data of both directions went by RDMA, and nothing in between was lost.
fn by_rdma(ended: &[Value]) -> Finding {
    let bytes = |direction: usize| -> u64 {
        let counts = ended.iter().map(|event| event["rdma"][direction].as_u64());
        counts.map(Option::unwrap_or_default).sum()
    };
    let (written, read) = (bytes(0), bytes(1));
    Finding {
        what: "disk over SMB Direct",
        ok: ended.len() == 1 && written > 0 && read > 0,
        detail: format!(
            "connections: {}; bytes by RDMA: {read} read, {written} written",
            ended.len()
        ),
    }
}

fn blk(options: &[&str], queues: u16, dir: &Path, stop: &Stop) -> Result<Served, Error> {
    let args = |socket: &Path| {
        let mut words = vec!["--socket-path".to_owned(), text(socket)];
        words.extend(options.iter().map(ToString::to_string));
        words.extend(["--queues".to_owned(), queues.to_string()]);
        words
    };
    Served::start("linkspan blk", "blk", args, dir, stop)
}

/// A file with the user and a password that nobody knows, in a folder that is ours alone.
fn credentials(dir: &Path) -> Result<PathBuf, Error> {
    let path = dir.join("credentials");
    let mut secret = [0_u8; 16];
    // So few bytes come at once (getrandom(2)).
    getrandom(&mut secret, GetRandomFlags::empty()).map_err(Error::system("make a password"))?;
    let password: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let lines = format!("username={USER}\npassword={password}\n");
    fs::write(&path, lines).map_err(Error::file("write", &path))?;
    Ok(path)
}

impl Share {
    /// Serves the folder of an image: the server, and where the image is then.
    fn start(
        image: &Path,
        credentials: &Path,
        dir: &Path,
        stop: &Stop,
    ) -> Result<(Self, String), Error> {
        let image = fs::canonicalize(image).map_err(Error::file("open", image))?;
        let (folder, name) = match (image.parent(), image.file_name()) {
            (Some(folder), Some(name)) => (folder, name.to_string_lossy()),
            _ => {
                return Err(Error::file("serve", &image)(
                    std::io::ErrorKind::IsADirectory.into(),
                ));
            }
        };
        let words = [
            "smb",
            "serve",
            "--json",
            "--share",
            // With a slash, as a name that ends with :ro would say something.
            &format!("{SHARE}={}/", text(folder)),
            "--credentials",
            &text(credentials),
            "--listen-rdma",
            "127.0.0.1:0",
        ];
        let (process, log, events) = spawn("linkspan smb serve", &words, None, dir)?;
        let mut share = Self {
            process,
            log,
            events,
        };
        let address = share.address(stop)?;
        let name = name.replace('%', "%25").replace(' ', "%20");
        Ok((share, format!("smb://{USER}@{address}/{SHARE}/{name}")))
    }

    /// Waits until it says where it listens.
    fn address(&mut self, stop: &Stop) -> Result<String, Error> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let listening = reports(&self.events, "listening");
            let address = listening
                .first()
                .and_then(|event| event["address"].as_str());
            if let Some(address) = address {
                return Ok(address.to_owned());
            }
            let soon = Instant::now() + Duration::from_millis(10);
            let name = self.process.name();
            if let Some(status) = self.process.wait_until(soon, stop)? {
                let tail = tail(&self.log);
                return Err(Error::Ended { name, status, tail });
            }
            if Instant::now() >= deadline {
                return Err(Error::Silent {
                    name,
                    limit: LIMIT,
                    tail: tail(&self.log),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn data_has_to_go_by_rdma_on_one_connection() {
        let ended = |written: u64, read: u64| json!({"event": "ended", "rdma": [written, read]});
        assert!(by_rdma(&[ended(1, 2)]).ok);
        for wrong in [
            vec![],
            vec![ended(0, 2)],
            vec![ended(1, 0)],
            vec![ended(1, 2), ended(1, 2)],
            vec![json!({"event": "ended"})],
        ] {
            assert!(!by_rdma(&wrong).ok, "{wrong:?}");
        }
    }

    #[test]
    fn passwords_differ() {
        let password = || {
            let dir = tempfile::tempdir().unwrap();
            fs::read_to_string(credentials(dir.path()).unwrap()).unwrap()
        };
        let first = password();
        assert!(first.len() > 40 && first.starts_with("username=demo\npassword="));
        assert_ne!(first, password());
    }
}
