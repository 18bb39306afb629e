//! Each step by which a channel is made, a guest and a host come up, and a file is
//! written, fails in turn. The seam is of the whole process, so this is one test.

use std::error::Error;
use std::fs;
use std::path::Path;

use linkspan_backends::fcopy::{Accepts, Host, HostOptions, Temporary, Tree, TreeOptions};
use linkspan_engine::vmbus::{Channel, Framed, Offer};
use linkspan_sys::Listener;
use linkspan_testkit::census::start_reaper;
use linkspan_testkit::sweep::sweep;
use linkspan_vmbus::fcopy::{Effect, Place, Target};
use linkspan_vmbus::link::Role;

#[test]
fn every_step_fails_in_turn_and_leaves_nothing() {
    start_reaper();
    let folder = tempfile::tempdir().unwrap();
    let report = sweep(channel);
    println!("channel: {report:?}");
    assert!(report.points >= 10 && report.absorbed() == 0, "{report:?}");
    let socket = folder.path().join("s");
    let report = sweep(|| host(&socket));
    println!("host: {report:?}");
    assert!(report.points >= 6 && report.absorbed() == 0, "{report:?}");
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    let report = sweep(|| {
        let result = folder_in(&root);
        match &result {
            Ok(()) => fs::remove_dir_all(root.join("a")).unwrap(),
            Err(_) => assert!(fs::read_dir(&root).unwrap().next().is_none()),
        }
        result
    });
    println!("folder: {report:?}");
    assert!(report.points >= 6 && report.absorbed() == 0, "{report:?}");
    fs::remove_dir(&root).unwrap();
    for temporary in [Temporary::Unnamed, Temporary::Named] {
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        let report = sweep(|| {
            let result = file(&root, temporary);
            let left = fs::read_dir(&root).unwrap().count();
            if result.is_err() {
                assert_eq!(left, 0, "something is left");
            } else {
                fs::remove_dir_all(root.join("a")).unwrap();
            }
            result
        });
        println!("file: {report:?}");
        assert!(report.points >= 9 && report.absorbed() == 0, "{report:?}");
        fs::remove_dir(&root).unwrap();
    }
}

fn channel() -> Result<(), Box<dyn Error>> {
    let offer = Offer::new(20480)?;
    let mut host = offer.host()?;
    let fds = offer.descriptors().map(|fd| fd.try_clone_to_owned());
    let fds = fds.into_iter().collect::<Result<_, _>>()?;
    let mut guest = Channel::guest(offer.shape, fds)?;
    let mut packet = guest.packet()?;
    let header = linkspan_vmbus::packet::Header::in_band(1);
    host.outgoing.send(header, &[b"12345678"])?;
    host.flush()?;
    guest.incoming.refresh()?;
    assert!(guest.incoming.receive(&mut packet)?);
    Ok(guest.flush()?)
}

fn host(socket: &Path) -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind(socket)?;
    let options = HostOptions {
        ring: 20480,
        outstanding: 16,
    };
    let host = Host::new(vec![(listener, Accepts::All)], options, drop)?;
    let guest = Framed::connect(socket, Role::Guest)?;
    drop((host, guest));
    Ok(())
}

fn folder_in(root: &Path) -> Result<(), Box<dyn Error>> {
    let tree = Tree::new(&[root], TreeOptions::default())?;
    let place = Place {
        root: 0,
        folder: "a/b".into(),
        target: Target::In {
            name: "folder".into(),
        },
        overwrite: false,
        create_path: true,
        size: 0,
    };
    Ok(tree.make_folder(&place)?)
}

fn file(root: &Path, temporary: Temporary) -> Result<(), Box<dyn Error>> {
    let options = TreeOptions {
        temporary,
        overwrite: true,
        ..TreeOptions::default()
    };
    let mut tree = Tree::new(&[root], options)?;
    let place = Place {
        root: 0,
        folder: "a/b".into(),
        target: Target::At {
            last: "c".into(),
            name: "file".into(),
        },
        overwrite: true,
        create_path: true,
        size: 5,
    };
    tree.carry_out(&Effect::Open(place), &[])?;
    let write = Effect::Write {
        offset: 0,
        data: 0..5,
    };
    tree.carry_out(&write, b"hello")?;
    Ok(tree.carry_out(&Effect::Finish, &[])?)
}
