//! What is opened, how, and what is not.

use super::*;

#[test]
fn past_the_cache_an_image_has_whole_blocks() {
    let way = way("/var/tmp", Io::Auto, true);
    let file = way.file(&[1; 700]);
    match RawImage::open(file.path(), &way.options()) {
        Err(OpenError::Unaligned { bytes: 700, .. }) => {}
        Err(OpenError::Direct { .. }) => println!("SKIP: no O_DIRECT in {}", way.folder),
        Ok(image) => assert_eq!(image.engine(), Engine::Inline),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn refused_io_uring_means_threads_unless_it_was_asked_for() {
    let refused = || uring::Error::Refused {
        why: "a test",
        source: Errno::PERM.into(),
    };
    assert_eq!(choose(Io::Auto, Ok(())).unwrap(), Engine::Uring);
    assert_eq!(choose(Io::Auto, Err(refused())).unwrap(), Engine::Threads);
    let error = choose(Io::Uring, Err(refused())).unwrap_err();
    assert!(
        error.to_string().contains("io_uring is refused: a test"),
        "{error}"
    );
    let lack = uring::Error::System(Errno::MFILE.into());
    assert!(matches!(
        choose(Io::Auto, Err(lack)),
        Err(OpenError::Uring(_))
    ));
}

#[test]
fn memory_is_served_by_the_worker_unless_asked_otherwise() {
    let engine = |way: Way| way.rig(&[1; 512]).map(|rig| rig.image.engine());
    let shm = |io| engine(way("/dev/shm", io, false));
    assert_eq!(shm(Io::Auto), Some(Engine::Inline));
    assert_eq!(shm(Io::Threads), Some(Engine::Threads));
    assert!(matches!(shm(Io::Uring), Some(Engine::Uring) | None));
    assert_eq!(
        engine(way("/dev/shm", Io::Auto, true)),
        Some(Engine::Inline)
    );
}

#[test]
fn what_is_no_image_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let read_only = OpenOptions {
        read_only: true,
        ..OPTIONS
    };
    assert!(matches!(
        RawImage::open(folder.path(), &read_only),
        Err(OpenError::Kind { .. })
    ));
    let empty = NamedTempFile::new().unwrap();
    assert!(matches!(
        RawImage::open(empty.path(), &OPTIONS),
        Err(OpenError::Empty { .. })
    ));
    let missing = folder.path().join("missing");
    let error = RawImage::open(&missing, &OPTIONS).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn an_image_in_use_is_refused_and_a_free_one_taken_within_the_wait() {
    each_way(&[1; 4096], |way, rig| {
        let path = rig.file.path();
        let again = |lock_wait| {
            let options = OpenOptions {
                lock_wait,
                ..way.options()
            };
            RawImage::open(path, &options)
        };
        assert!(matches!(
            again(Duration::ZERO),
            Err(OpenError::InUse { .. })
        ));
        let image = rig.image;
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| again(crate::image::LOCK_WAIT));
            drop(image);
            waiting.join()
        });
        assert!(waiting.is_ok_and(|opened| opened.is_ok()), "{way:?}");
    });
}
