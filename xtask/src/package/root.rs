//! A root of its own for packages: this machine's files, and over them a layer that takes
//! all that is changed and that can be looked at. It is in a mount namespace and goes with it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result};

use super::said;

/// Makes the root below `$1`, says so, and stays until its input ends.
const MAKE: &str = "\
mount -t tmpfs tmpfs \"$1\"
cd \"$1\"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=\"$1/upper\",workdir=\"$1/work\" root
mount --rbind /dev root/dev
mount --rbind /proc root/proc
mount -t tmpfs tmpfs root/run
mount -t tmpfs tmpfs root/tmp
# It is not whole where folders are file systems of their own; and packages depend on these.
chroot root dpkg --status libc6 libgcc-s1 >/dev/null
echo made
exec cat >/dev/null";

/// What is in the layer and not in this machine's files, by its path: files, devices that
/// stand for something removed, and folders. What dpkg keeps of its own work is left out.
const CHANGED: &str = "\
cd \"$1/upper\"
find . -mindepth 1 \\( -path ./var/lib/dpkg -o -path './var/log/*' \\) -prune \\
    -o -print | LC_ALL=C sort | while read -r path; do
    [ -d \"$path\" ] && [ -d \"/$path\" ] || echo \"${path#.}\"
done";

/// The root, while the value is there.
pub(super) struct Root {
    place: PathBuf,
    holder: Child,
    /// The holder ends with this pipe, even if this process is killed.
    input: Option<ChildStdin>,
}

impl Root {
    /// `Err` inside: this machine does not let us, and why.
    pub(super) fn new() -> Result<Result<Self, String>> {
        let place = std::env::temp_dir().join(format!("linkspan-root-{}", std::process::id()));
        // An empty one of a run that was killed.
        let _ = fs::remove_dir(&place);
        fs::create_dir(&place)?;
        let mut holder = Command::new("unshare");
        holder
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-euc",
                MAKE,
                "sh",
            ])
            .arg(&place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut holder = holder.spawn().context("cannot run unshare")?;
        let input = holder.stdin.take();
        let mut line = String::new();
        let output = holder.stdout.take().context("a pipe")?;
        BufReader::new(output).read_line(&mut line)?;
        let root = Self {
            place,
            holder,
            input,
        };
        Ok(match line.as_str() {
            "made\n" => Ok(root),
            _ => Err("this machine makes no root for us, see above".to_owned()),
        })
    }

    /// A command in the namespace.
    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command
    }

    /// A program that will run in the root.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = self.enter();
        command.arg("chroot").arg(self.place.join("root"));
        command
            .arg(program)
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Runs lines of a shell in the root. They fail with the first that does.
    pub(super) fn shell(&self, lines: &str) -> Result<String> {
        let mut shell = self.command("sh");
        said(shell.args(["-euc", lines])).with_context(|| lines.to_owned())
    }

    /// Puts a file into the root's /tmp.
    pub(super) fn put(&self, file: &std::path::Path, name: &str) -> Result<()> {
        let mut copy = self.enter();
        let to = self.place.join("root/tmp").join(name);
        said(copy.arg("cp").arg(file).arg(to)).map(drop)
    }

    /// What has come since the root was made, or gone.
    pub(super) fn changed(&self) -> Result<Vec<String>> {
        let mut find = self.enter();
        find.args(["sh", "-euc", CHANGED, "sh"]).arg(&self.place);
        Ok(said(&mut find)?.lines().map(str::to_owned).collect())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.holder.wait();
        // The mounts went with the namespace: the folder is empty.
        let _ = fs::remove_dir(&self.place);
    }
}
