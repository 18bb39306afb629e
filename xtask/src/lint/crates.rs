//! Who may depend on whom. Dependencies point down: program, back ends, engine,
//! pure crates, memory; engine, system calls, memory.

use crate::project::Package;

use super::Fault;

/// The name that every crate of the project's but xtask begins with.
const OURS: &str = "linkspan";

/// Crates without I/O, clock, thread, lock, async, descriptors and log.
pub(crate) const PURE: &[&str] = &[
    "linkspan-virtio",
    "linkspan-devices",
    "linkspan-vhost",
    "linkspan-vmbus",
    "linkspan-rdma",
    "linkspan-smbdirect",
    "linkspan-smb2",
    "linkspan-vfio",
    "linkspan-display",
];

/// What a crate may use of ours. Pure crates never use each other, except that
/// SMB Direct runs over the rdma seam and that devices use queues.
const ALLOWED: &[(&str, &[&str])] = &[
    ("linkspan-mem", &[]),
    ("linkspan-sys", &["linkspan-mem"]),
    ("linkspan-virtio", &["linkspan-mem"]),
    ("linkspan-devices", &["linkspan-mem", "linkspan-virtio"]),
    ("linkspan-vhost", &["linkspan-mem"]),
    ("linkspan-vmbus", &["linkspan-mem"]),
    ("linkspan-rdma", &["linkspan-mem"]),
    ("linkspan-smbdirect", &["linkspan-mem", "linkspan-rdma"]),
    ("linkspan-smb2", &["linkspan-mem"]),
    ("linkspan-vfio", &["linkspan-mem"]),
    ("linkspan-display", &["linkspan-mem"]),
    ("linkspan-guest", &[]),
    // What it sends is made by hand: it uses words of the wire, and no session.
    (
        "linkspan-conform",
        &["linkspan-sys", "linkspan-vhost", "linkspan-virtio"],
    ),
    // The tasks build without the project, so that they can set up what it needs.
    ("xtask", &["linkspan-guest"]),
    // Cores without the system: what is simulated has none.
    (
        SIMULATION,
        &[
            "linkspan-mem",
            "linkspan-virtio",
            "linkspan-devices",
            "linkspan-vhost",
            "linkspan-vmbus",
            "linkspan-rdma",
            "linkspan-smbdirect",
            "linkspan-smb2",
            "linkspan-vfio",
        ],
    ),
    // The engine knows no device.
    (
        "linkspan-engine",
        &[
            "linkspan-mem",
            "linkspan-sys",
            "linkspan-virtio",
            "linkspan-vhost",
            "linkspan-vmbus",
            "linkspan-rdma",
            "linkspan-smbdirect",
            "linkspan-smb2",
            "linkspan-vfio",
            "linkspan-display",
        ],
    ),
];

/// These may use everything but what stands here: each other, upwards.
const UPPER: &[(&str, &[&str])] = &[
    (
        "linkspan-backends",
        &["linkspan", "linkspan-backends", TEST_KIT, PEERS, SIMULATION],
    ),
    ("linkspan", &["linkspan", TEST_KIT, PEERS, SIMULATION]),
    (TEST_KIT, &["linkspan", TEST_KIT, PEERS, SIMULATION]),
    // Strangers talk to the program itself, too.
    ("linkspan-fuzz", &[TEST_KIT, PEERS, SIMULATION]),
    (PEERS, &["linkspan", PEERS, SIMULATION]),
];

/// What tests share, and drivers and back ends of others for tests: no part of
/// what is delivered, so only tests use them.
const TEST_KIT: &str = "linkspan-testkit";
const PEERS: &str = "linkspan-peers";
const SIMULATION: &str = "linkspan-sim";

/// Crates of others that no pure crate may use: they touch the system, log, or wait.
const IMPURE: &[&str] = &[
    "libc",
    "rustix",
    "nix",
    "io-uring",
    "socket2",
    "tracing",
    "log",
    "mio",
    "parking_lot",
    "crossbeam",
];

/// Async runtimes: only the program has one.
const RUNTIMES: &[&str] = &[
    "tokio",
    "tokio-util",
    "async-std",
    "smol",
    "async-io",
    "compio",
    "monoio",
    "glommio",
];

/// Checks every edge but those of tests, which may tie anything together.
pub(super) fn dependencies(packages: &[Package]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for package in packages {
        let name = package.name.as_str();
        for dependency in &package.dependencies {
            let used = dependency.name.as_str();
            // Tests of a crate have no runtime either.
            if name != OURS && RUNTIMES.contains(&used) {
                faults.push(Fault::new(
                    name,
                    format!("uses {used}; only the program has an async runtime"),
                ));
            }
            if dependency.dev {
                continue;
            }
            if PURE.contains(&name) && IMPURE.contains(&used) {
                faults.push(Fault::new(
                    name,
                    format!("is pure and uses {used}, which is not"),
                ));
            }
            if used.starts_with(OURS) && !may_use(name, used) {
                faults.push(Fault::new(
                    name,
                    format!("must not use {used}; dependencies point down"),
                ));
            }
        }
        if name.starts_with(OURS) && !is_known(name) {
            faults.push(Fault::new(
                name,
                "is new: say in xtask/src/lint/crates.rs what it may use",
            ));
        }
    }
    faults
}

fn is_known(name: &str) -> bool {
    ALLOWED.iter().any(|(known, _)| *known == name) || UPPER.iter().any(|(known, _)| *known == name)
}

fn may_use(name: &str, used: &str) -> bool {
    let listed = |table: &[(&str, &[&str])]| {
        table
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, list)| list.contains(&used))
    };
    listed(ALLOWED)
        .or_else(|| listed(UPPER).map(|forbidden| !forbidden))
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use crate::project::Dependency;

    use super::*;

    fn package(name: &str, uses: &[&str]) -> Package {
        let dependency = |name: &&str| Dependency {
            name: (*name).to_owned(),
            dev: false,
        };
        Package {
            name: name.to_owned(),
            dir: name.into(),
            dependencies: uses.iter().map(dependency).collect(),
        }
    }

    fn faults(name: &str, uses: &[&str]) -> usize {
        dependencies(&[package(name, uses)]).len()
    }

    #[test]
    fn edges_that_point_down_are_fine() {
        assert_eq!(
            faults(
                "linkspan-devices",
                &["linkspan-virtio", "linkspan-mem", "zerocopy"]
            ),
            0
        );
        assert_eq!(faults("linkspan-smbdirect", &["linkspan-rdma"]), 0);
        assert_eq!(
            faults("linkspan-engine", &["linkspan-sys", "linkspan-vhost"]),
            0
        );
        assert_eq!(
            faults(
                "linkspan-backends",
                &["linkspan-engine", "linkspan-devices"]
            ),
            0
        );
        assert_eq!(
            faults(
                "linkspan",
                &["linkspan-backends", "linkspan-devices", "tokio"]
            ),
            0
        );
    }

    #[test]
    fn edges_that_point_up_or_sideways_are_faults() {
        assert_eq!(faults("linkspan-mem", &["linkspan-sys"]), 1);
        assert_eq!(faults("linkspan-virtio", &["linkspan-vhost"]), 1);
        assert_eq!(faults("linkspan-vhost", &["linkspan-sys"]), 1);
        assert_eq!(
            faults(
                "linkspan-engine",
                &["linkspan-devices", "linkspan-backends"]
            ),
            2
        );
        assert_eq!(faults("linkspan-backends", &["linkspan"]), 1);
        assert_eq!(faults("xtask", &["linkspan-guest", "linkspan"]), 1);
        assert_eq!(
            faults("linkspan-testkit", &["linkspan-engine", "linkspan"]),
            1
        );
    }

    #[test]
    fn only_tests_use_what_is_for_tests() {
        for name in [
            "linkspan",
            "linkspan-backends",
            "linkspan-engine",
            "linkspan-virtio",
        ] {
            for used in [TEST_KIT, PEERS] {
                assert_eq!(faults(name, &[used]), 1, "{name} {used}");
                let mut package = package(name, &[used]);
                package.dependencies[0].dev = true;
                assert_eq!(dependencies(&[package]), []);
            }
        }
    }

    #[test]
    fn a_crate_that_nobody_placed_is_a_fault() {
        assert_eq!(faults("linkspan-common", &[]), 1);
    }

    #[test]
    fn pure_crates_use_nothing_that_touches_the_system() {
        assert_eq!(faults("linkspan-vhost", &["rustix", "tracing"]), 2);
        assert_eq!(faults("linkspan-engine", &["rustix", "tracing"]), 0);
    }

    #[test]
    fn only_the_program_has_a_runtime_even_in_tests() {
        assert_eq!(faults("linkspan-engine", &["tokio"]), 1);
        let mut engine = package("linkspan-engine", &["tokio", "linkspan-devices"]);
        engine
            .dependencies
            .iter_mut()
            .for_each(|dependency| dependency.dev = true);
        let found = dependencies(&[engine]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.contains("tokio"));
    }
}
