//! Files on a share of Samba's server, over TCP: what others wrote speaks with what is
//! written here, in every dialect and with every algorithm.

mod smb_files;

use std::fs;

use linkspan_backends::smb::{Error, Login, Settings, Share};
use linkspan_smb2::negotiate::dialect;
use linkspan_smb2::status;
use linkspan_testkit::samba::Samba;
use smb_files::{bytes, get, login, only, open, put, round};

#[test]
fn every_dialect_carries_files_plain_signed_and_encrypted() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    for dialect in dialect::ALL {
        let name = dialect::text(*dialect);
        let mut share = open(&samba, &only(*dialect)).unwrap();
        assert_eq!(share.connection().agreed().unwrap().dialect, *dialect);
        assert!(!share.connection().protection().signed, "{name}");
        round(&samba, &mut share);

        let mut settings = only(*dialect);
        settings.require_signing = true;
        let mut share = open(&samba, &settings).unwrap();
        assert!(share.connection().protection().signed, "{name}");
        round(&samba, &mut share);

        settings.require_encryption = true;
        match open(&samba, &settings) {
            Ok(mut share) => {
                assert!(share.connection().protection().encrypted, "{name}");
                round(&samba, &mut share);
            }
            Err(error) => {
                assert_eq!(*dialect, dialect::SMB_2_1, "{error}");
                assert!(error.to_string().contains("encryption"), "{error}");
            }
        }
    }
}

#[test]
fn every_algorithm_signs_and_encrypts() {
    for signing in ["AES-128-GMAC", "AES-128-CMAC", "HMAC-SHA256"] {
        let line = format!("server smb3 signing algorithms = {signing}");
        let Some(samba) = Samba::start(&[&line, "server signing = mandatory"]) else {
            return;
        };
        let mut share = open(&samba, &Settings::default()).unwrap();
        assert!(share.connection().protection().signed, "{signing}");
        let text = share.describe();
        assert!(text.contains(&signing.replace("AES-128", "AES")), "{text}");
        round(&samba, &mut share);
    }
    for cipher in ["AES-128-GCM", "AES-128-CCM", "AES-256-GCM", "AES-256-CCM"] {
        let line = format!("server smb3 encryption algorithms = {cipher}");
        let Some(samba) = Samba::start(&[&line, "smb encrypt = required"]) else {
            return;
        };
        let mut share = open(&samba, &Settings::default()).unwrap();
        assert!(share.describe().contains(cipher), "{}", share.describe());
        round(&samba, &mut share);
    }
}

#[test]
fn refusals_have_their_names() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let settings = Settings::default();
    let mut wrong = login(&samba);
    wrong.password = "another".into();
    let error = Share::open("127.0.0.1", samba.port, "files", &wrong, &settings).unwrap_err();
    assert!(
        matches!(
            error,
            Error::LogOn {
                status: status::LOGON_FAILURE,
                ..
            }
        ),
        "{error}"
    );
    let right = login(&samba);
    let error = Share::open("127.0.0.1", samba.port, "none", &right, &settings).unwrap_err();
    assert_eq!(error.status(), Some(status::BAD_NETWORK_NAME), "{error}");
    let error = Share::open("127.0.0.1", samba.port, "IPC$", &right, &settings).unwrap_err();
    assert!(matches!(error, Error::Kind(_)), "{error}");

    fs::write(samba.share().join("there"), b"text").unwrap();
    let mut fixed = Share::open("127.0.0.1", samba.port, "fixed", &right, &settings).unwrap();
    assert_eq!(get(&mut fixed, "there").unwrap(), b"text");
    for error in [
        put(&mut fixed, "new", b"text").unwrap_err(),
        fixed.remove("there").unwrap_err(),
        fixed.make_folder("folder").unwrap_err(),
    ] {
        assert_eq!(error.status(), Some(status::ACCESS_DENIED), "{error}");
    }
    let error = fixed.stat("nothing").unwrap_err();
    assert_eq!(
        error.status(),
        Some(status::OBJECT_NAME_NOT_FOUND),
        "{error}"
    );
    let error = fixed.list("there").unwrap_err();
    assert_eq!(error.status(), Some(status::NOT_A_DIRECTORY), "{error}");
    let error = fixed.open_read("").unwrap_err();
    assert_eq!(error.status(), Some(status::FILE_IS_A_DIRECTORY), "{error}");
    // After all that the connection still serves.
    assert_eq!(get(&mut fixed, "there").unwrap(), b"text");
}

#[test]
fn a_guest_has_no_key_and_is_refused_unless_that_is_allowed() {
    let Some(samba) = Samba::start(&["map to guest = bad user"]) else {
        return;
    };
    let stranger = Login {
        user: "nobody-of-that-name".into(),
        password: "x".into(),
        ..Login::default()
    };
    let mut settings = Settings::default();
    // Whoever is in between could say that, too, and have what is sent.
    let error = Share::open("127.0.0.1", samba.port, "files", &stranger, &settings).unwrap_err();
    assert!(
        matches!(error, Error::Protocol(linkspan_smb2::Error::Guest)),
        "{error}"
    );
    settings.guest_allowed = true;
    let share = Share::open("127.0.0.1", samba.port, "files", &stranger, &settings).unwrap();
    assert!(share.connection().protection().guest);
    assert!(share.describe().ends_with("as a guest"));
    settings.require_signing = true;
    let error = Share::open("127.0.0.1", samba.port, "files", &stranger, &settings).unwrap_err();
    assert!(error.to_string().contains("guest"), "{error}");
}

#[test]
fn long_pieces_cost_many_credits() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let settings = Settings {
        max_io: 8 << 20,
        ..Settings::default()
    };
    let mut share = open(&samba, &settings).unwrap();
    let data = bytes(24 << 20);
    put(&mut share, "file", &data).unwrap();
    assert!(get(&mut share, "file").unwrap() == data);
}

#[test]
fn a_folder_of_a_thousand_files_is_listed_whole() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    for number in 0..1000 {
        let name = format!("a file with a rather long name, number {number}");
        fs::write(samba.share().join(name), b"").unwrap();
    }
    let mut share = open(&samba, &Settings::default()).unwrap();
    assert_eq!(share.list("").unwrap().len(), 1000);
}

#[test]
fn a_server_that_is_gone_is_told_from_one_that_refuses() {
    let Some(mut samba) = Samba::start(&[]) else {
        return;
    };
    let mut share = open(&samba, &Settings::default()).unwrap();
    put(&mut share, "file", b"text").unwrap();
    samba.restart();
    let error = share.stat("file").unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    let mut share = open(&samba, &Settings::default()).unwrap();
    assert_eq!(get(&mut share, "file").unwrap(), b"text");
    samba.stop();
    let error = open(&samba, &Settings::default()).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}
