//! Devices for the model kernel that nothing else here has: one of a type without
//! a driver of ours, and a network card whose control queue keeps what it is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use linkspan_engine::{
    ActiveRing, Budget, ConfigRange, Device, NETWORK_DEVICE, OpenQueueError, Progress, QueueHandler,
};
use linkspan_virtio::{Chain, Features, QueueError};

/// An entropy device (virtio 1.3 5.4) whose bytes can be foretold: each is one
/// more than the one before.
#[derive(Debug, Default)]
pub struct Entropy;

impl Device for Entropy {
    fn name(&self) -> &'static str {
        "entropy"
    }

    fn device_id(&self) -> u32 {
        4
    }

    fn features(&self) -> Features {
        Features::empty()
    }

    fn queues(&self) -> u16 {
        1
    }

    fn queue_size_max(&self) -> u16 {
        256
    }

    fn open_queue(&self, _: u16, _: Features) -> Result<Box<dyn QueueHandler>, OpenQueueError> {
        Ok(Box::new(EntropyQueue {
            chain: Chain::new(64)?,
            next: 0,
        }))
    }
}

struct EntropyQueue {
    chain: Chain,
    next: u8,
}

impl QueueHandler for EntropyQueue {
    fn run(&mut self, ring: &mut ActiveRing, budget: Budget) -> Result<Progress, QueueError> {
        for _ in 0..budget.chains {
            if !ring.queue.pop(&ring.memory.guest, &mut self.chain)? {
                return Ok(Progress::Idle);
            }
            let mut bytes = [0; 64];
            let wanted = self.chain.writable_total().min(64);
            for byte in &mut bytes[..wanted as usize] {
                self.next = self.next.wrapping_add(1);
                *byte = self.next;
            }
            let table = ring.memory.table();
            let whole = table.scatter(self.chain.writable(), 0, &bytes[..wanted as usize]);
            assert!(whole.is_ok());
            ring.queue.push(&self.chain, wanted)?;
        }
        Ok(Progress::More)
    }
}

/// A network card of `pairs` queue pairs and a control queue behind them. Its data
/// queues give back each buffer as it is.
#[derive(Debug)]
pub struct Card {
    pairs: u16,
    features: u64,
    config: Mutex<[u8; 24]>,
    commands: Arc<Mutex<Vec<Vec<u8>>>>,
    answers: Answers,
}

/// To the next commands, each; 0 (done) to all after those. `None` is nothing at all.
type Answers = Arc<Mutex<VecDeque<Option<u8>>>>;

impl Card {
    /// A card with these features of network devices.
    pub fn new(pairs: u16, features: u64) -> Self {
        let mut config = [0; 24];
        config[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        config[6] = 1;
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..12].copy_from_slice(&1500_u16.to_le_bytes());
        Self {
            pairs,
            features,
            config: Mutex::new(config),
            commands: Arc::default(),
            answers: Arc::default(),
        }
    }

    /// What it says to the next command instead of 0, that it is done; nothing at all.
    pub fn answer_next(&self, answer: Option<u8>) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.push_back(answer);
    }

    /// What it was told since this was last asked.
    pub fn commands(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the link up or down.
    pub fn set_link(&self, up: bool) {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        config[6] = up.into();
    }
}

impl Device for Card {
    fn name(&self) -> &'static str {
        "card"
    }

    fn device_id(&self) -> u32 {
        NETWORK_DEVICE
    }

    fn features(&self) -> Features {
        Features::from_bits_retain(self.features)
    }

    fn queues(&self) -> u16 {
        2 * self.pairs + 1
    }

    fn queue_size_max(&self) -> u16 {
        256
    }

    fn config_size(&self) -> u32 {
        24
    }

    fn read_config(&self, offset: u32, target: &mut [u8]) -> Result<(), ConfigRange> {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let from = config.get(offset as usize..);
        let from = from.and_then(|rest| rest.get(..target.len()));
        let (len, size) = (target.len(), 24);
        target.copy_from_slice(from.ok_or(ConfigRange { offset, len, size })?);
        Ok(())
    }

    fn open_queue(&self, index: u16, _: Features) -> Result<Box<dyn QueueHandler>, OpenQueueError> {
        let control = index == 2 * self.pairs;
        Ok(Box::new(CardQueue {
            chain: Chain::new(64)?,
            commands: control.then(|| Arc::clone(&self.commands)),
            answers: Arc::clone(&self.answers),
        }))
    }
}

struct CardQueue {
    chain: Chain,
    commands: Option<Arc<Mutex<Vec<Vec<u8>>>>>,
    answers: Answers,
}

impl QueueHandler for CardQueue {
    fn run(&mut self, ring: &mut ActiveRing, budget: Budget) -> Result<Progress, QueueError> {
        for _ in 0..budget.chains {
            if !ring.queue.pop(&ring.memory.guest, &mut self.chain)? {
                return Ok(Progress::Idle);
            }
            let mut written = 0;
            if let Some(commands) = &self.commands {
                let table = ring.memory.table();
                let len = self.chain.readable().iter().map(|span| span.len() as usize);
                let mut command = vec![0; len.sum()];
                let read = table.gather(self.chain.readable(), 0, &mut command);
                assert!(read.is_ok());
                let mut all = commands.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(command);
                let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(answer) = answers.pop_front().unwrap_or(Some(0)) else {
                    continue;
                };
                let answered = table.scatter(self.chain.writable(), 0, &[answer]);
                assert!(answered.is_ok());
                written = 1;
            }
            ring.queue.push(&self.chain, written)?;
        }
        Ok(Progress::More)
    }
}
