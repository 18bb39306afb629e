//! The Debian package, installed in a root of its own by dpkg, its service started as its
//! unit says, used, stopped; then the package is removed and purged, and nothing is left.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::root::Root;
use super::said;
use crate::packages;

/// How long the service may take for what it is asked.
const PATIENCE: Duration = Duration::from_secs(120);

const UNIT: &str = "/usr/lib/systemd/system/linkspan.service";

/// Warnings are none: systemctl is called where debhelper's scripts would be called.
const LINTIAN: [&str; 3] = ["--no-cfg", "--fail-on=error", "--allow-root"];

/// Nothing of ours is there.
const BARE: &str = "
[ ! -e /etc/linkspan ]
[ ! -e /var/lib/linkspan ]
! dpkg-query --show linkspan";

/// With all files, also where an image for containers leaves manuals and documentation out.
const INSTALL: &str = "dpkg --no-triggers --path-include='/*' --install /tmp/linkspan.deb";

/// What came of it.
pub(super) enum Done {
    Works,
    /// This machine cannot try it, and why.
    Impossible(String),
}

pub(super) fn check(package: &Path) -> Result<Done> {
    if packages::runs("lintian") {
        said(Command::new("lintian").args(LINTIAN).arg(package))?;
    } else {
        println!("lintian is not here and not asked");
    }
    if !packages::is_root() {
        return Ok(Done::Impossible("only root installs packages".to_owned()));
    }
    let root = match Root::new()? {
        Ok(root) => root,
        Err(why) => return Ok(Done::Impossible(why)),
    };
    // What is of an installation of the user's own would be taken for ours.
    if root.shell(BARE).is_err() {
        let why = "this machine has linkspan installed, or what is left of it";
        return Ok(Done::Impossible(why.to_owned()));
    }
    root.put(package, "linkspan.deb")?;
    root.shell(INSTALL).context("it is not installed")?;
    offers(&root).context("what is installed")?;
    serves(&root).context("the service")?;
    goes(&root).context("its removal")?;
    Ok(Done::Works)
}

/// The program, its pages, what shells and management software read; and nothing runs.
fn offers(root: &Root) -> Result<()> {
    root.shell("linkspan --version; [ -z \"$(dpkg --verify linkspan)\" ]")?;
    root.shell("zcat /usr/share/man/man1/linkspan-driver-blk.1.gz | grep -q EXAMPLES")?;
    root.shell("bash -n /usr/share/bash-completion/completions/linkspan")?;
    for name in ["blk", "gpu"] {
        let description = format!("/usr/share/qemu/vhost-user/60-linkspan-{name}.json");
        let text = root.shell(&format!("cat {description}"))?;
        let text: serde_json::Value = serde_json::from_str(&text)?;
        let program = text["binary"].as_str().context("a program")?;
        let said = root.shell(&format!("{program} --print-capabilities"))?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        ensure!(said["type"] == text["type"], "{said} is not {text}");
    }
    let enabled = root.changed()?;
    let enabled = enabled.iter().find(|path| path.starts_with("/etc/systemd"));
    ensure!(enabled.is_none(), "it enables {enabled:?}");
    Ok(())
}

/// The service as its manager would have it: with the settings as they come, without a link,
/// and then with the disk of their own example.
fn serves(root: &Root) -> Result<()> {
    root.shell("mkdir -p /run/linkspan /var/lib/linkspan")?;
    let mut service = Service::start(root)?;
    service.await_word("STATUS=no links yet")?;
    let list = root.shell("linkspan link list")?;
    ensure!(list.is_empty(), "nobody has set up {list}");
    root.shell(
        "sed -i '/^# .link.disk.$/,/^$/ s/^# //' /etc/linkspan/plane.toml
        head -c 1M /dev/urandom >/var/lib/linkspan/disk.img
        linkspan plane check /etc/linkspan/plane.toml",
    )?;
    service.signal("HUP")?;
    service.await_word("RELOADING=1")?;
    service.await_word("READY=1")?;
    root.shell(
        "linkspan link list --control /run/linkspan/control.sock | grep disk
        linkspan driver blk --socket-path /run/linkspan/disk.sock --connect-limit 60 \\
            read --length 1M --to /tmp/copy
        cmp /tmp/copy /var/lib/linkspan/disk.img",
    )?;
    service.signal("TERM")?;
    service.await_word("STOPPING=1")?;
    let status = service.process.wait()?;
    ensure!(status.success(), "it ended with {status}");
    root.shell("[ -z \"$(ls -A /run/linkspan)\" ]")
        .context("something is left in /run")?;
    Ok(())
}

/// Settings stay until they are purged, and what is the user's stays.
fn goes(root: &Root) -> Result<()> {
    root.shell("dpkg --no-triggers --remove linkspan")?;
    let left = root.changed()?;
    let user = ["/var/lib/linkspan", "/var/lib/linkspan/disk.img"];
    let mut expected = vec!["/etc/linkspan", "/etc/linkspan/plane.toml"];
    expected.extend(user);
    ensure!(left == expected, "removed, it leaves {left:#?}");
    root.shell("dpkg --no-triggers --purge linkspan")?;
    let left = root.changed()?;
    ensure!(left == user, "purged, it leaves {left:#?}");
    Ok(())
}

/// The program of the unit, and who hears how it is.
struct Service {
    process: Child,
    socket: UnixDatagram,
}

impl Service {
    fn start(root: &Root) -> Result<Self> {
        let unit = root.shell(&format!("cat {UNIT}"))?;
        let mut lines = unit.lines();
        let line = lines.find_map(|line| line.strip_prefix("ExecStart="));
        let mut words = line.context("the unit starts nothing")?.split(' ');
        let name = format!("linkspan-package-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name)?;
        let socket = UnixDatagram::bind_addr(&address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut command = root.command(words.next().context("the unit starts nothing")?);
        command.args(words).env("NOTIFY_SOCKET", format!("@{name}"));
        let process = command.stdin(Stdio::null()).spawn()?;
        Ok(Self { process, socket })
    }

    /// Waits until it says this of itself.
    fn await_word(&mut self, word: &str) -> Result<()> {
        let mut bytes = [0; 4096];
        loop {
            let heard = self.socket.recv(&mut bytes);
            let heard = heard.with_context(|| format!("it never says {word}"))?;
            let text = String::from_utf8_lossy(&bytes[..heard]);
            if text.lines().any(|line| line == word) {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("it ended with {status} and did not say {word}");
            }
        }
    }

    fn signal(&self, name: &str) -> Result<()> {
        // The shell's own: the program is in a package that need not be there.
        let mut shell = Command::new("sh");
        shell.args(["-c", "kill -s \"$1\" \"$2\"", "sh", name]);
        said(shell.arg(self.process.id().to_string())).map(drop)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended as it should.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
