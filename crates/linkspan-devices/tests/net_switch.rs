//! The learning switch against a map without bounds, and what one port can do to
//! the others.

use std::collections::{HashMap, HashSet};

use linkspan_devices::net::switch::{
    DropReason, Egress, FloodLimit, Forward, PortVlans, Switch, SwitchError, SwitchOptions,
};
use linkspan_devices::net::{Mac, VlanSet};
use proptest::prelude::*;

fn options() -> SwitchOptions {
    SwitchOptions {
        ports: 4,
        stations: 1024,
        stations_per_port: 256,
        ageing_s: 300,
        flood: None,
        seed: 0x1234_5678_9ABC_DEF0,
    }
}

fn switch() -> Switch {
    Switch::new(options()).unwrap()
}

fn mac(station: u16) -> Mac {
    let [a, b] = station.to_be_bytes();
    Mac([2, 0, 0, 0, a, b])
}

fn frame(from: Mac, to: Mac, tag: Option<u16>) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    if let Some(tag) = tag {
        frame.extend([0x81, 0]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend([8, 0, 0, 0]);
    frame
}

fn send(switch: &mut Switch, port: u16, from: u16, to: u16) -> Forward {
    switch.forward(port, &frame(mac(from), mac(to), None), 0)
}

const FLOOD: Forward = Forward::Flood { vlan: 0 };

fn one(port: u16) -> Forward {
    Forward::One { port, vlan: 0 }
}

#[test]
fn what_was_learned_goes_on_in_another_table() {
    let mut switch = switch();
    let tagged = frame(mac(3), Mac::BROADCAST, Some(7));
    let vlans = PortVlans::Trunk {
        native: None,
        allowed: VlanSet::ALL,
    };
    assert!(switch.set_vlans(2, vlans.clone()));
    switch.forward(2, &tagged, 5_000);
    switch.forward(0, &frame(mac(1), Mac::BROADCAST, None), 9_000);
    switch.forward(1, &frame(mac(2), Mac::BROADCAST, None), 400_000);
    assert!(switch.add_static(3, 0, mac(4)));
    let mut stations: Vec<_> = switch.stations(309_000).collect();
    stations.sort_unstable();
    let expected = [(0, mac(1), 9, 0), (0, mac(2), 400, 1)];
    let seen = stations
        .iter()
        .map(|it| (it.vlan, it.mac, it.seen_s, it.port));
    assert_eq!(seen.collect::<Vec<_>>(), expected);
    let mut next = self::switch();
    assert!(next.set_vlans(2, vlans));
    for it in switch.stations(0) {
        next.note(it.port, it.vlan, it.mac, u64::from(it.seen_s) * 1000);
    }
    assert_eq!(send(&mut next, 3, 9, 1), one(0));
    let to_tagged = frame(mac(8), mac(3), Some(7));
    let there = Forward::One { port: 2, vlan: 7 };
    assert_eq!(
        next.forward(2, &to_tagged, 0),
        Forward::Drop(DropReason::SamePort)
    );
    assert!(next.set_vlans(1, PortVlans::Access(7)));
    assert_eq!(next.forward(1, &frame(mac(6), mac(3), None), 0), there);
}

#[test]
fn a_station_is_found_where_it_was_heard_of() {
    let mut switch = switch();
    assert_eq!(send(&mut switch, 0, 1, 2), FLOOD);
    assert_eq!(send(&mut switch, 1, 2, 1), one(0));
    assert_eq!(send(&mut switch, 0, 1, 2), one(1));
    let same = Forward::Drop(DropReason::SamePort);
    assert_eq!(send(&mut switch, 1, 3, 2), same);
    let everybody = frame(mac(1), Mac::BROADCAST, None);
    assert_eq!(switch.forward(0, &everybody, 0), FLOOD);
    let group = frame(mac(1), Mac([1, 0, 0x5E, 0, 0, 1]), None);
    assert_eq!(switch.forward(0, &group, 0), FLOOD);
    // Nobody is at address zero, even where the table is empty.
    let nobody = frame(mac(1), Mac::default(), None);
    assert_eq!(switch.forward(0, &nobody, 0), FLOOD);
}

#[test]
fn a_station_moves_and_is_forgotten() {
    let mut switch = switch();
    send(&mut switch, 0, 1, 9);
    send(&mut switch, 2, 1, 9);
    assert_eq!(switch.moves(), 1);
    assert_eq!((switch.learned(0), switch.learned(2)), (0, 1));
    assert_eq!(send(&mut switch, 1, 2, 1), one(2));
    let head = frame(mac(2), mac(1), None);
    assert_eq!(switch.forward(1, &head, 300_999), one(2));
    assert_eq!(switch.forward(1, &head, 301_000), FLOOD);
    // A link that went down.
    send(&mut switch, 2, 1, 9);
    switch.forget(2);
    assert_eq!((switch.learned(2), send(&mut switch, 1, 2, 1)), (0, FLOOD));
    switch.forget(77);
}

#[test]
fn frames_that_no_bridge_passes_on_are_dropped() {
    let mut switch = switch();
    let mut drops = |port, bytes: &[u8], reason| {
        assert_eq!(switch.forward(port, bytes, 0), Forward::Drop(reason));
    };
    let good = frame(mac(1), mac(2), None);
    drops(0, &good[..13], DropReason::Malformed);
    drops(4, &good, DropReason::Malformed);
    let group = Mac([3, 0, 0, 0, 0, 1]);
    drops(0, &frame(group, mac(2), None), DropReason::Source);
    drops(0, &frame(Mac::default(), mac(2), None), DropReason::Source);
    for last in 0..16 {
        let reserved = Mac([0x01, 0x80, 0xC2, 0, 0, last]);
        drops(0, &frame(mac(1), reserved, None), DropReason::Reserved);
    }
    let other = frame(mac(1), Mac([0x01, 0x80, 0xC2, 0, 0, 0x10]), None);
    assert_eq!(switch.forward(0, &other, 0), FLOOD);
}

#[test]
fn a_configured_station_stays_where_it_is() {
    let mut switch = switch();
    send(&mut switch, 3, 1, 9);
    assert!(switch.add_static(0, 0, mac(1)));
    assert_eq!(switch.learned(3), 0);
    let spoofed = Forward::Drop(DropReason::Spoofed);
    assert_eq!(send(&mut switch, 3, 1, 9), spoofed);
    let head = frame(mac(2), mac(1), None);
    assert_eq!(switch.forward(1, &head, u64::MAX), one(0));
    switch.forget(0);
    assert_eq!(switch.forward(1, &head, u64::MAX), one(0));
    assert!(switch.remove_static(0, mac(1)));
    assert!(!switch.remove_static(0, mac(1)));
    assert!(!switch.remove_static(0, Mac::default()));
    assert_eq!(send(&mut switch, 3, 1, 2), one(1));
    for (port, vlan, mac) in [
        (4, 0, mac(1)),
        (0, 4096, mac(1)),
        (0, 0, Mac::BROADCAST),
        (0, 0, Mac::default()),
    ] {
        assert!(!switch.add_static(port, vlan, mac));
    }
}

/// A guest that makes up addresses fills its own share and harms nobody.
#[test]
fn a_port_cannot_displace_what_others_have_learned() {
    let small = SwitchOptions {
        stations: 64,
        stations_per_port: 16,
        ..options()
    };
    let mut switch = Switch::new(small).unwrap();
    for station in 0..8 {
        send(&mut switch, 0, station, 0x7FFF);
    }
    let mut known: Vec<u16> = (0..8).collect();
    known.retain(|station| send(&mut switch, 2, 0x7FFE, *station) == one(0));
    assert!(
        known.len() >= 6,
        "buckets of four are seldom full: {known:?}"
    );
    for station in 1000..21_000 {
        send(&mut switch, 1, station, 0x7FFF);
        assert!(switch.learned(1) <= 16);
    }
    assert!(switch.learned(1) > 0);
    for station in known {
        assert_eq!(send(&mut switch, 2, 0x7FFE, station), one(0));
    }
    // What became old gives way.
    let later = frame(mac(30_000), mac(1), None);
    for _ in 0..2 {
        assert_eq!(switch.forward(3, &later, 400_000), FLOOD);
    }
    assert_eq!(switch.learned(3), 1);
}

#[test]
fn a_port_that_floods_too_much_is_held_back() {
    let limited = SwitchOptions {
        flood: Some(FloodLimit {
            frames_per_s: 100,
            burst: 10,
        }),
        ..options()
    };
    let mut switch = Switch::new(limited).unwrap();
    let head = frame(mac(1), Mac::BROADCAST, None);
    let flooded = |switch: &mut Switch, port, now_ms| {
        let tries = 0..1000;
        tries
            .filter(|_| switch.forward(port, &head, now_ms) == FLOOD)
            .count()
    };
    assert_eq!(flooded(&mut switch, 0, 0), 10);
    assert_eq!(flooded(&mut switch, 1, 0), 10, "each port has its own");
    assert_eq!(flooded(&mut switch, 0, 9), 0);
    assert_eq!(flooded(&mut switch, 0, 10), 1);
    assert_eq!(flooded(&mut switch, 0, 60), 5);
    assert_eq!(flooded(&mut switch, 0, u64::MAX), 10);
    assert_eq!(flooded(&mut switch, 0, 5), 0, "time does not go back");
    // Known stations do not need it.
    switch.forward(2, &frame(mac(2), mac(1), None), 70);
    let known = frame(mac(1), mac(2), None);
    assert_eq!(switch.forward(0, &known, 70), one(2));
}

#[test]
fn ports_belong_to_vlans() {
    let mut switch = switch();
    let mut allowed = VlanSet::NONE;
    assert!(allowed.set(5, true) && allowed.set(6, true));
    let trunk = PortVlans::Trunk {
        native: Some(9),
        allowed,
    };
    assert!(switch.set_vlans(0, PortVlans::Access(5)));
    assert!(switch.set_vlans(1, PortVlans::Access(6)));
    assert!(switch.set_vlans(2, trunk));
    let dropped = Forward::Drop(DropReason::Vlan);
    let untagged = frame(mac(1), mac(2), None);
    let priority = frame(mac(1), mac(2), Some(0xE000));
    let tagged = |vlan: u16| frame(mac(1), mac(2), Some(0x2000 | vlan));
    let five = Forward::Flood { vlan: 5 };
    assert_eq!(switch.forward(0, &untagged, 0), five);
    assert_eq!(switch.forward(0, &priority, 0), five);
    assert_eq!(switch.forward(0, &tagged(5), 0), dropped);
    assert_eq!(switch.forward(2, &tagged(5), 0), five);
    assert_eq!(switch.forward(2, &tagged(7), 0), dropped);
    assert_eq!(switch.forward(2, &untagged, 0), Forward::Flood { vlan: 9 });
    assert_eq!(switch.forward(3, &tagged(5), 0), FLOOD, "tags mean nothing");
    // The same station in two VLANs is two.
    let back = frame(mac(2), mac(1), None);
    assert_eq!(
        switch.forward(0, &back, 0),
        Forward::One { port: 2, vlan: 5 }
    );
    assert_eq!(switch.forward(1, &back, 0), Forward::Flood { vlan: 6 });

    // Ways out.
    for (port, vlan, head, egress) in [
        (0, 5, &untagged, Some(Egress::AsItIs)),
        (0, 5, &tagged(5), Some(Egress::Untag)),
        (0, 6, &untagged, None),
        (0, 0, &untagged, None),
        (2, 5, &untagged, Some(Egress::Tag(5))),
        (2, 5, &priority, Some(Egress::Tag(5))),
        (2, 5, &tagged(5), Some(Egress::AsItIs)),
        (2, 9, &untagged, Some(Egress::AsItIs)),
        (2, 9, &tagged(9), Some(Egress::Untag)),
        (2, 7, &untagged, None),
        (3, 0, &tagged(5), Some(Egress::AsItIs)),
        (3, 5, &tagged(5), None),
        (4, 0, &untagged, None),
    ] {
        assert_eq!(switch.egress(port, vlan, head), egress, "{port} {vlan}");
    }
    for vlans in [PortVlans::Access(0), PortVlans::Access(4095)] {
        assert!(!switch.set_vlans(0, vlans));
    }
    assert!(!switch.set_vlans(4, PortVlans::Unaware));
}

#[test]
fn options_that_make_no_switch_are_refused() {
    for ports in [0, u16::MAX] {
        let error = Switch::new(SwitchOptions { ports, ..options() }).unwrap_err();
        assert_eq!(error, SwitchError::Ports { ports });
    }
    for stations in [0, (1 << 24) + 1] {
        let error = Switch::new(SwitchOptions {
            stations,
            ..options()
        })
        .unwrap_err();
        assert_eq!(error, SwitchError::Stations { stations });
    }
    let mut tiny = Switch::new(SwitchOptions {
        stations: 1,
        ports: 1,
        ..options()
    })
    .unwrap();
    assert_eq!(send(&mut tiny, 0, 1, 2), FLOOD);
}

/// What a switch without bounds knows.
#[derive(Default)]
struct Model {
    stations: HashMap<(u16, Mac), (u16, u64)>,
    fixed: HashSet<(u16, Mac)>,
}

impl Model {
    fn forward(&mut self, port: u16, vlan: u16, from: Mac, to: Mac, now_s: u64) -> Forward {
        let source = (vlan, from);
        match self.stations.get_mut(&source) {
            Some((at, _)) if self.fixed.contains(&source) => {
                if *at != port {
                    return Forward::Drop(DropReason::Spoofed);
                }
            }
            _ => {
                self.stations.insert(source, (port, now_s));
            }
        }
        let destination = (vlan, to);
        match self.stations.get(&destination) {
            Some((at, seen))
                if self.fixed.contains(&destination)
                    || now_s - seen <= u64::from(options().ageing_s) =>
            {
                if *at == port {
                    Forward::Drop(DropReason::SamePort)
                } else {
                    Forward::One { port: *at, vlan }
                }
            }
            _ => Forward::Flood { vlan },
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Frame { port: u16, from: u16, to: u16 },
    Wait { seconds: u64 },
    Fix { port: u16, station: u16 },
    Free { station: u16 },
    Forget { port: u16 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (port, station) = (|| 0_u16..4, || 1_u16..9);
    let step = prop_oneof![
        12 => (port(), station(), station()).prop_map(|(port, from, to)| Step::Frame { port, from, to }),
        2 => (0_u64..400).prop_map(|seconds| Step::Wait { seconds }),
        1 => (port(), station()).prop_map(|(port, station)| Step::Fix { port, station }),
        1 => station().prop_map(|station| Step::Free { station }),
        1 => port().prop_map(|port| Step::Forget { port }),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn a_switch_agrees_with_a_naive_model(steps in steps(), vlans in any::<bool>()) {
        // Two worlds of two ports each, or one of four.
        let (mut switch, mut model, mut now_s) = (switch(), Model::default(), 0);
        let vlan = |port: u16| if vlans { 1 + port % 2 } else { 0 };
        if vlans {
            for port in 0..4 {
                assert!(switch.set_vlans(port, PortVlans::Access(vlan(port))));
            }
        }
        for step in steps {
            match step {
                Step::Frame { port, from, to } => {
                    let head = frame(mac(from), mac(to), None);
                    let found = switch.forward(port, &head, now_s * 1000 + 7);
                    let expected = model.forward(port, vlan(port), mac(from), mac(to), now_s);
                    prop_assert_eq!(found, expected);
                }
                Step::Wait { seconds } => now_s += seconds,
                Step::Fix { port, station } => {
                    let key = (vlan(port), mac(station));
                    prop_assert!(switch.add_static(port, key.0, key.1));
                    model.stations.insert(key, (port, now_s));
                    model.fixed.insert(key);
                }
                Step::Free { station } => {
                    let key = (vlan(0), mac(station));
                    let was = model.fixed.remove(&key);
                    prop_assert_eq!(switch.remove_static(key.0, key.1), was);
                    if was {
                        model.stations.remove(&key);
                    }
                }
                Step::Forget { port } => {
                    switch.forget(port);
                    let fixed = &model.fixed;
                    model.stations.retain(|key, (at, _)| *at != port || fixed.contains(key));
                }
            }
            for port in 0..4 {
                let learned = model.stations.iter();
                let learned = learned.filter(|(key, (at, _))| *at == port && !model.fixed.contains(key));
                prop_assert_eq!(switch.learned(port) as usize, learned.count());
            }
        }
    }

    /// Any frames in a table that is far too small: counts stay right.
    #[test]
    fn a_table_that_is_too_small_keeps_its_bounds(
        frames in prop::collection::vec((0_u16..4, any::<u16>(), any::<u16>(), 0_u64..1000), 0..300),
    ) {
        let small = SwitchOptions { stations: 8, stations_per_port: 3, ageing_s: 1, ..options() };
        let mut switch = Switch::new(small).unwrap();
        let mut now = 0;
        for (port, from, to, passed) in frames {
            now += passed;
            switch.forward(port, &frame(mac(from), mac(to), None), now);
            let learned: Vec<u32> = (0..4).map(|port| switch.learned(port)).collect();
            prop_assert!(learned.iter().all(|count| *count <= 3), "{:?}", learned);
            prop_assert!(learned.iter().sum::<u32>() <= 8);
        }
        for port in 0..4 {
            switch.forget(port);
            prop_assert_eq!(switch.learned(port), 0);
        }
    }
}

#[test]
fn a_table_says_what_others_should_hear_and_takes_over_what_they_say() {
    let (mut own, mut other) = (switch(), switch());
    let mut now_s = 0_u64;
    let mut heard = |switch: &mut Switch, port, from, after_s: u64| {
        now_s += after_s;
        let before = switch.news();
        let frame = frame(mac(from), Mac::BROADCAST, None);
        switch.forward(port, &frame, now_s * 1000);
        switch.news() - before
    };
    assert_eq!(heard(&mut own, 0, 1, 1), 1, "a new station");
    assert_eq!(heard(&mut own, 0, 1, 0), 0, "the same again");
    assert_eq!(heard(&mut own, 0, 1, 1), 0, "it is remembered for long");
    assert_eq!(heard(&mut own, 2, 1, 0), 1, "it has moved");
    // It speaks every second, and others never forget it.
    let mut told = 0;
    for _ in 0..1000 {
        told += heard(&mut own, 2, 1, 1);
    }
    assert!((1000 / 300..1000 / 30).contains(&told), "{told} times");

    other.note(2, 0, mac(1), 0);
    assert_eq!(send(&mut other, 0, 9, 1), one(2));
    // What makes no sense is not taken.
    for (port, vlan, mac) in [(4, 0, mac(5)), (0, 4096, mac(5)), (0, 0, Mac::BROADCAST)] {
        let before = other.news();
        other.note(port, vlan, mac, 0);
        assert_eq!(other.news(), before);
    }
}
