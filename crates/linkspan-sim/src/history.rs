//! The disk of the model, and what its users may see of it: every request is
//! answered once, and each block holds a write that no later one has replaced
//! for certain.

/// Blocks of the disk: few, so that requests overlap.
pub(crate) const BLOCKS: u64 = 12;
/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;

/// What a user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
}

/// A request: its token is its number, and what a write writes.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// When it was submitted, and answered.
    submitted: u64,
    answered: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct History {
    /// Grows with everything that happens.
    now: u64,
    asked: Vec<Asked>,
    /// Who wrote each block last.
    disk: Vec<u64>,
    last_flush: u64,
    answers: u64,
}

impl History {
    /// A disk of zeroes, which request 0 wrote.
    pub(crate) fn new() -> Self {
        let zeroes = Asked {
            kind: Kind::Write,
            first: 0,
            count: BLOCKS,
            submitted: 0,
            answered: Some(0),
        };
        Self {
            now: 1,
            asked: vec![zeroes],
            disk: vec![0; usize::try_from(BLOCKS).expect("few")],
            last_flush: 0,
            answers: 0,
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A request is about to be submitted: its token.
    pub(crate) fn submit(&mut self, kind: Kind, first: u64, count: u64) -> u64 {
        let submitted = self.tick();
        self.asked.push(Asked {
            kind,
            first,
            count,
            submitted,
            answered: None,
        });
        self.asked.len() as u64 - 1
    }

    /// It was not submitted after all.
    pub(crate) fn take_back(&mut self) {
        self.asked.pop();
    }

    pub(crate) fn asked(&self, token: u64) -> &Asked {
        let asked = usize::try_from(token)
            .ok()
            .and_then(|at| self.asked.get(at));
        asked.unwrap_or_else(|| panic!("there is no request {token:#x}"))
    }

    /// Requests submitted so far.
    pub(crate) fn submitted(&self) -> u64 {
        self.asked.len() as u64 - 1
    }

    pub(crate) fn outstanding(&self) -> u64 {
        self.submitted() - self.answers
    }

    /// A back end writes this block, with bytes that a user wrote.
    pub(crate) fn write_block(&mut self, block: u64, bytes: &[u8]) {
        let token = content(bytes);
        let asked = self.asked(token);
        let covers = (asked.first..asked.first + asked.count).contains(&block);
        assert!(
            asked.kind == Kind::Write && covers,
            "request {token} does not write block {block}"
        );
        assert!(
            asked.answered.is_none(),
            "block {block} is written by request {token} after that was answered"
        );
        self.tick();
        self.disk[usize::try_from(block).expect("few")] = token;
    }

    /// What a back end reads from this block.
    pub(crate) fn read_block(&mut self, block: u64) -> [u8; BLOCK] {
        self.tick();
        bytes_of(self.disk[usize::try_from(block).expect("few")])
    }

    /// A back end flushed.
    pub(crate) fn flush(&mut self) {
        self.last_flush = self.tick();
    }

    /// A request was answered; `data` is what a read has brought.
    pub(crate) fn answer(&mut self, token: u64, data: &[u8]) {
        let asked = self.asked(token).clone();
        assert!(
            asked.answered.is_none(),
            "request {token} is answered twice"
        );
        match asked.kind {
            Kind::Read => {
                for (block, bytes) in (asked.first..).zip(data.chunks_exact(BLOCK)) {
                    self.check(block, content(bytes), asked.submitted);
                }
            }
            Kind::Write => {}
            Kind::Flush => assert!(
                self.last_flush > asked.submitted,
                "flush {token} is answered without being done"
            ),
        }
        let now = self.tick();
        self.asked[usize::try_from(token).expect("it exists")].answered = Some(now);
        self.answers += 1;
    }

    /// Whoever reads this block from `since` on may see the write `token`: none
    /// that was asked for after its answer was answered before the read began.
    fn check(&self, block: u64, token: u64, since: u64) {
        let seen = self.asked(token);
        let covers = |asked: &Asked| {
            asked.kind == Kind::Write && (asked.first..asked.first + asked.count).contains(&block)
        };
        assert!(covers(seen), "request {token} did not write block {block}");
        let Some(answered) = seen.answered else {
            return;
        };
        let later = (0..).zip(&self.asked).find(|(_, asked)| {
            covers(asked)
                && asked.submitted > answered
                && asked.answered.is_some_and(|answered| answered < since)
        });
        if let Some((later, _)) = later {
            panic!(
                "block {block} holds write {token}, but write {later} came after it and was answered"
            );
        }
    }

    /// The whole disk, when all is over.
    pub(crate) fn check_end(&mut self) {
        assert_eq!(self.outstanding(), 0, "requests are outstanding");
        let now = self.tick();
        for (block, token) in (0..).zip(&self.disk) {
            self.check(block, *token, now);
        }
    }
}

/// A block that request `token` writes.
pub(crate) fn bytes_of(token: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&token.to_le_bytes());
    }
    bytes
}

/// Who wrote these bytes.
fn content(bytes: &[u8]) -> u64 {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    let token = word(&bytes[..8]);
    let same = bytes.chunks_exact(8).all(|bytes| word(bytes) == token);
    assert!(same, "a block is made of pieces");
    token
}
