//! Each rule can be broken: back ends with one fault each, and one that dies of anything that
//! is not in order. A rule that can never say so would be none.

mod back_end;

use std::sync::RwLock;
use std::thread;
use std::time::Duration;

use back_end::{Device, Fault, start};
use linkspan_conform::{Kind, Rule, Target, Verdict, rules, run};

/// For what has to be right, on a slow machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// For what has to be wrong.
const SHORT: Duration = Duration::from_millis(1500);

fn kind(device: Device) -> Kind {
    match device {
        Device::Disk => Kind::Blk,
        Device::Card => Kind::Net,
    }
}

/// What counts the descriptors of this process is alone here.
static ALONE: RwLock<()> = RwLock::new(());

/// Tries a rule on a back end of its own. What these back ends do they do at once: one that is
/// to die is found dead after a short time, which is long enough to find another one alive.
fn verdict(device: Device, fault: Fault, rule: &'static Rule, patience: Duration) -> Verdict {
    let counts = rule.name == "descriptors-kept";
    let _alone = counts.then(|| ALONE.write().unwrap());
    let _with_others = (!counts).then(|| ALONE.read().unwrap());
    let tried = || {
        let folder = tempfile::tempdir().unwrap();
        let target = Target {
            socket: folder.path().join("socket"),
            kind: kind(device),
            patience,
            settle: Duration::from_millis(100),
        };
        start(&target.socket, device, fault);
        run(&target, &[rule], None, &mut || false, &mut |_| {}).ok()
    };
    // One that had no processor in this time was not looked at.
    let found = (0..20).find_map(|_| tried());
    found.expect("it can be reached")[0].verdict.clone()
}

/// Tries all of these, some at a time.
fn verdicts(
    device: Device,
    patience: Duration,
    wanted: impl Fn(&Rule) -> bool,
) -> Vec<(&'static str, Verdict)> {
    let wanted: Vec<_> = rules(kind(device)).filter(|rule| wanted(rule)).collect();
    let mut found = Vec::new();
    for some in wanted.chunks(16) {
        thread::scope(|scope| {
            let trying = |rule: &&'static Rule| {
                let rule = *rule;
                scope.spawn(move || (rule.name, verdict(device, Fault::None, rule, patience)))
            };
            let tried: Vec<_> = some.iter().map(trying).collect();
            found.extend(tried.into_iter().map(|tried| tried.join().unwrap()));
        });
    }
    found
}

/// Whether a rule is about what an honest front end relies on: it holds on a back end that is
/// only good for those.
fn is_honest(rule: &Rule) -> bool {
    !rule.clause.starts_with("safety") || rule.name == "reconnects"
}

#[test]
fn a_careless_back_end_holds_what_honest_front_ends_rely_on() {
    for device in [Device::Disk, Device::Card] {
        for (name, verdict) in verdicts(device, PATIENCE, is_honest) {
            assert!(matches!(verdict, Verdict::Held(_)), "{name}: {verdict:?}");
        }
    }
}

#[test]
fn a_careless_back_end_dies_of_each_hostile_rule() {
    for device in [Device::Disk, Device::Card] {
        let found = verdicts(device, SHORT, |rule| !is_honest(rule));
        let lives = found.iter().filter(|(_, verdict)| !verdict.is_against());
        let lives: Vec<_> = lives.collect();
        assert!(lives.is_empty(), "{device:?}: {lives:#?}");
    }
}

#[test]
fn each_fault_breaks_its_rule() {
    use Fault as F;
    let mut unnoticed = Vec::new();
    for (device, fault, name) in [
        (Device::Disk, F::ReplyFlags, "reply-header"),
        (Device::Disk, F::NoVersion1, "version-1"),
        (
            Device::Disk,
            F::LateProtocolFeatures,
            "protocol-features-at-once",
        ),
        (Device::Disk, F::RefusesAll, "acknowledges"),
        (
            Device::Disk,
            F::AcknowledgesUnasked,
            "acknowledges-only-if-asked",
        ),
        (Device::Disk, F::RepliesTwice, "one-reply"),
        (Device::Disk, F::NoQueues, "queue-number"),
        (Device::Disk, F::NoSlots, "memory-slots"),
        (Device::Disk, F::WholeMessages, "split-message"),
        (Device::Disk, F::OneMessageAtATime, "messages-at-once"),
        (Device::Disk, F::ConfigShort, "config-space"),
        (Device::Disk, F::OneConnection, "reconnects"),
        (Device::Disk, F::UsedLong, "serves"),
        (Device::Disk, F::WritesBeyond, "serves"),
        (Device::Disk, F::StopsAtWrap, "serves-many"),
        (Device::Disk, F::NoCall, "notifies"),
        (Device::Disk, F::LosesKick, "kick-before-enable"),
        (Device::Disk, F::WaitsForKick, "start-without-kick"),
        (
            Device::Disk,
            F::DisabledWithoutBit30,
            "enabled-without-bit-30",
        ),
        (Device::Disk, F::ServesStopped, "stops"),
        (Device::Disk, F::BaseZero, "goes-on"),
        (Device::Disk, F::BaseZero, "base-is-kept"),
        (Device::Disk, F::KeepsDescriptors, "descriptors-kept"),
        (Device::Disk, F::ReadsNothing, "blk-read-fills"),
        (Device::Disk, F::ThreeDescriptors, "blk-any-layout"),
        (Device::Disk, F::NoLastSector, "blk-last-sector"),
        (Device::Disk, F::NoBounds, "blk-beyond-capacity"),
        (Device::Disk, F::NoBounds, "blk-sector-wraps"),
        (Device::Disk, F::NoBounds, "blk-unknown-type"),
        (Device::Disk, F::NoStatus, "blk-identifies"),
        (Device::Disk, F::WritesReadable, "blk-read-into-readable"),
        (Device::Card, F::ThreeDescriptors, "net-any-layout"),
        (Device::Card, F::WritesReadable, "net-writable-to-transmit"),
    ] {
        let rule = rules(kind(device)).find(|rule| rule.name == name).unwrap();
        // On a busy machine bytes come together that were sent apart.
        let broken = || verdict(device, fault, rule, SHORT).is_against();
        if !(0..20).any(|_| broken()) {
            unnoticed.push((fault, name));
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
