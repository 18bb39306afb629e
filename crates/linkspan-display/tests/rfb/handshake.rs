//! Versions, security, and the screen.

use linkspan_display::rfb::{Error, Event, Options, Security, Viewer};

use super::options;

/// Says all of it, one byte at a time or at once; gives back what was answered.
fn talk(options: &Options, bytes: &[u8], split: bool) -> (Result<(), Error>, Vec<u8>, Vec<Event>) {
    let mut viewer = Viewer::new(options, 640, 480);
    let (mut out, mut events) = (Vec::new(), Vec::new());
    let size = if split { 1 } else { bytes.len() };
    let mut result = Ok(());
    for part in bytes.chunks(size) {
        result = viewer
            .input(part, &mut events)
            .map(|taken| assert_eq!(taken, part.len()));
        out.extend_from_slice(viewer.output());
        viewer.sent(viewer.output().len());
        if result.is_err() {
            let again = viewer.input(b"x", &mut events);
            assert_eq!(again, Err(Error::Ended));
            break;
        }
    }
    (result, out, events)
}

fn screen() -> Vec<u8> {
    let mut bytes = vec![2, 128, 1, 224];
    bytes.extend([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
    bytes.extend([0, 0, 0, 5]);
    bytes.extend(b"guest");
    bytes
}

#[test]
fn every_version_is_spoken_as_it_wants() {
    let none: &[u8] = &[1, 1];
    for (version, security, choice, result) in [
        (b"RFB 003.008\n", none, &[1][..], &[0, 0, 0, 0][..]),
        // Apple's, and one that is to come.
        (b"RFB 003.889\n", none, &[1], &[0, 0, 0, 0]),
        (b"RFB 004.001\n", none, &[1], &[0, 0, 0, 0]),
        (b"RFB 003.007\n", none, &[1], &[]),
        (b"RFB 003.003\n", &[0, 0, 0, 1], &[], &[]),
        (b"RFB 003.005\n", &[0, 0, 0, 1], &[], &[]),
    ] {
        for split in [false, true] {
            let said = [version, choice, &[0]].concat();
            let (ended, out, events) = talk(&options(), &said, split);
            assert_eq!(ended, Ok(()));
            let want = [b"RFB 003.008\n", security, result, &screen()].concat();
            assert_eq!(out, want, "{}", String::from_utf8_lossy(version));
            assert_eq!(events, [Event::Joined { shared: false }]);
        }
    }
}

#[test]
fn what_is_not_rfb_is_refused() {
    for version in [
        b"GET / HTTP/1",
        b"RFB 003.008\r",
        b"RFB 00x.008\n",
        b"RFB 002.002\n",
        b"rfb 003.008\n",
    ] {
        let (ended, out, _) = talk(&options(), version, false);
        assert_eq!(ended, Err(Error::Version { got: *version }));
        assert_eq!(out, b"RFB 003.008\n");
    }
}

#[test]
fn vnc_authentication_is_refused_by_name() {
    let (ended, out, _) = talk(&options(), b"RFB 003.008\n\x02", false);
    assert_eq!(ended, Err(Error::Security { kind: 2 }));
    let text = String::from_utf8_lossy(&out).into_owned();
    assert!(text.contains("VNC authentication is not offered"), "{text}");
    let (ended, out, _) = talk(&options(), b"RFB 003.007\n\x13", false);
    assert_eq!(ended, Err(Error::Security { kind: 0x13 }));
    assert_eq!(&out[14..], [0, 0, 0, 1]);
}

#[test]
fn a_client_that_may_not_look_hears_why() {
    let refused = Options {
        security: Security::Refused("four viewers are here".into()),
        ..options()
    };
    for (version, zero) in [(b"RFB 003.008\n", 1), (b"RFB 003.003\n", 4)] {
        let (ended, out, _) = talk(&refused, version, true);
        let reason = "four viewers are here".to_owned();
        assert_eq!(ended, Err(Error::Refused { reason }));
        let want = [&vec![0; zero][..], &[0, 0, 0, 21], b"four viewers are here"].concat();
        assert_eq!(&out[12..], want);
    }
}
