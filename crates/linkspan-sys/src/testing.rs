//! Tests whose subject is the whole process: they run once more, alone, in a
//! child that is this very test program.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

const MARK: &str = "LINKSPAN_SYS_TEST_CHILD";

/// How the child ended.
#[derive(Debug)]
pub(crate) struct Ended {
    status: ExitStatus,
    output: String,
}

impl Ended {
    pub(crate) fn assert_success(&self) {
        assert!(self.status.success(), "{}\n{}", self.status, self.output);
    }

    pub(crate) fn assert_signal(&self, signal: i32) {
        assert_eq!(
            self.status.signal(),
            Some(signal),
            "{}\n{}",
            self.status,
            self.output
        );
    }
}

/// Runs `body` in a child process. `test` is the path of the calling test,
/// which the child runs in turn: there `body` is called and the process ends.
pub(crate) fn in_child(test: &str, body: impl FnOnce()) -> Ended {
    if std::env::var_os(MARK).is_some() {
        body();
        std::process::exit(0);
    }
    let program = std::env::current_exe().expect("a test program has a path");
    let output = Command::new(program)
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .stdin(Stdio::null())
        .output()
        .expect("the test program can be started again");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let output_text = text(&output.stdout) + &text(&output.stderr);
    assert!(
        !output_text.contains("running 0 tests"),
        "no test is called {test}"
    );
    Ended {
        status: output.status,
        output: output_text,
    }
}

/// A file whose server has answered its opening and will answer nothing else.
pub(crate) struct DeadFile {
    pub(crate) file: std::os::fd::OwnedFd,
}
impl DeadFile {
    pub(crate) fn end(self) {}
}
pub(crate) fn dead_fuse_file() -> Option<DeadFile> {
    None
}
