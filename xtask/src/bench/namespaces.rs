//! Two network namespaces that are joined by our switch or by a kernel bridge, and
//! TCP from one to the other.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Turn, answer};

/// What our interfaces and namespaces are called, with the number of the process.
const NAME: &str = "lsb";

/// The namespaces and what joins them; all of it ends with the value.
pub(super) struct Place {
    switch: Option<Child>,
}

/// Names are as short as those of interfaces have to be.
fn named(what: &str) -> String {
    format!("{NAME}{what}{}", std::process::id() % 1_000_000)
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .context("cannot run ip")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {text}");
    Ok(())
}

impl Place {
    fn new() -> Result<Self> {
        let place = Self { switch: None };
        for side in ["a", "b"] {
            ip(&format!("netns add {}", named(side)))?;
        }
        Ok(place)
    }

    /// Gives the interface of each side its address.
    fn settle(&self) -> Result<()> {
        for (side, address) in [("a", 1), ("b", 2)] {
            let (space, link) = (named(side), named(&format!("i{side}")));
            ip(&format!("link set {link} netns {space}"))?;
            ip(&format!(
                "-n {space} addr add 10.99.0.{address}/24 dev {link}"
            ))?;
            ip(&format!("-n {space} link set {link} up"))?;
        }
        Ok(())
    }

    /// Joined by a bridge of the kernel.
    pub(super) fn bridge() -> Result<Self> {
        let place = Self::new()?;
        let bridge = named("br");
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("link set {bridge} up"))?;
        for side in ["a", "b"] {
            let (link, end) = (named(&format!("i{side}")), named(&format!("p{side}")));
            ip(&format!("link add {link} type veth peer name {end}"))?;
            ip(&format!("link set {end} master {bridge} up"))?;
        }
        place.settle()?;
        Ok(place)
    }

    /// Joined by our switch.
    pub(super) fn switch(linkspan: &Path) -> Result<Self> {
        let mut place = Self::new()?;
        let links = ["a", "b"].map(|side| named(&format!("i{side}")));
        let mut command = Command::new(linkspan);
        command.arg("net").env("LINKSPAN_LOG", "warn");
        for link in &links {
            command.args(["--port", &format!("tap:{link}")]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        place.switch = Some(command.spawn().context("cannot start linkspan")?);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !links
            .iter()
            .all(|link| Path::new("/sys/class/net").join(link).exists())
        {
            ensure!(Instant::now() < deadline, "linkspan makes no interfaces");
            std::thread::sleep(Duration::from_millis(1));
        }
        place.settle()?;
        Ok(place)
    }

    /// Bits a second of one TCP connection, and what 10^9 bytes cost the machine.
    pub(super) fn tcp(&self, seconds: f64) -> Result<Turn> {
        let within = |side: &str, arguments: &[&str]| {
            let mut command = Command::new("ip");
            command
                .args(["netns", "exec", &named(side), "iperf3"])
                .args(arguments)
                .stdin(Stdio::null());
            command
        };
        let mut server = within("b", &["-s", "-1", "--forceflush"]);
        let mut server = server.stdout(Stdio::piped()).spawn()?;
        let output = server.stdout.take().context("no output")?;
        wait_for_line(output, "listening")?;
        let before = busy_seconds()?;
        let time = seconds.ceil().max(1.0).to_string();
        let report = answer(within("a", &["-c", "10.99.0.2", "-t", &time, "-J"]));
        let busy = busy_seconds()? - before;
        drop(server.kill());
        drop(server.wait());
        let report = report?;
        let received = &report["end"]["sum_received"];
        let rate = super::number(received, "bits_per_second")?;
        let bytes = super::number(received, "bytes")?;
        Ok(Turn {
            rate,
            cpu: busy / (bytes / 1e9),
        })
    }
}

fn wait_for_line(output: impl std::io::Read, what: &str) -> Result<()> {
    use std::io::BufRead as _;
    for line in std::io::BufReader::new(output).lines() {
        if line?.contains(what) {
            return Ok(());
        }
    }
    anyhow::bail!("iperf3 did not say {what:?}")
}

/// Seconds that all processors have worked so far.
fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("no line")?;
    let ticks = line.split_whitespace().skip(1).map(str::parse::<f64>);
    let ticks = ticks.collect::<Result<Vec<_>, _>>()?;
    // User, nice, system; interrupts of both kinds. A hundred a second everywhere.
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at));
    Ok(busy.sum::<f64>() / 100.0)
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(switch) = &mut self.switch {
            drop(switch.kill());
            drop(switch.wait());
        }
        // Their ends in the namespaces go with them, and those would go some time after
        // their namespaces only.
        for side in ["a", "b"] {
            drop(ip(&format!("link del {}", named(&format!("p{side}")))));
            drop(ip(&format!("netns del {}", named(side))));
        }
        drop(ip(&format!("link del {}", named("br"))));
    }
}
