//! The control queue as a queue: commands in, one byte of answer out.

use linkspan_devices::net::control::{Change, Command, Control, ControlError, MacList, accepted};
use linkspan_devices::net::{Mac, Net, NetOptions, OFFLOADS, Speed};
use linkspan_mem::{Gpa, GuestMemory, Region, UserVa, Window};
use linkspan_virtio::{Buffer, Chain, DeviceQueue, DriverQueue, Features, QueueError, QueueLayout};

const OTHER: Mac = Mac([0x52, 0x54, 0, 9, 9, 9]);

fn control() -> Control {
    let net = Net::new(NetOptions {
        mac: Mac([0x52, 0x54, 0, 1, 2, 3]),
        mtu: 1500,
        pairs: 4,
        queue_size: 64,
        speed: Speed::default(),
        to_device: OFFLOADS,
        to_driver: OFFLOADS,
        control_queue: true,
    })
    .unwrap();
    Control::new(&net, net.features())
}

/// A control queue with a driver and a device.
struct Rig {
    memory: GuestMemory,
    driver: DriverQueue<Window>,
    device: DeviceQueue<Window>,
    chain: Chain,
}

const COMMAND: u64 = 0x3000;
const ACK: u64 = 0x2F00;

impl Rig {
    fn new() -> Self {
        let region = Region::heap(0x8000).unwrap();
        let memory = GuestMemory::new(vec![(region, Gpa(0), UserVa(0))]).unwrap();
        let features = Features::SPLIT_QUEUE;
        let layout = QueueLayout::of(features);
        let lens = layout.part_lens(8);
        let parts = || {
            std::array::from_fn(|part| {
                let at = Gpa(0x400 * part as u64);
                memory.guest.window(at, lens[part]).unwrap()
            })
        };
        Self {
            driver: DriverQueue::new(parts(), 8, features, layout.start()).unwrap(),
            device: DeviceQueue::new(parts(), 8, features, layout.start()).unwrap(),
            chain: Chain::new(8).unwrap(),
            memory,
        }
    }

    /// Sends bytes in two pieces; the outcome, or how the queue broke.
    fn serve(
        &mut self,
        control: &mut Control,
        bytes: &[u8],
        writable: u32,
    ) -> Result<Result<Change, ControlError>, QueueError> {
        let slice = |at, len| self.memory.table().regions()[0].slice(at, len).unwrap();
        slice(COMMAND, bytes.len() as u64).write(bytes);
        slice(ACK, 4).write(&[0xEE; 4]);
        let cut = bytes.len() / 2;
        let buffer = |at, len: usize| Buffer {
            address: Gpa(at),
            len: len.try_into().unwrap(),
        };
        let readable = [
            buffer(COMMAND, cut),
            buffer(COMMAND + cut as u64, bytes.len() - cut),
        ];
        let ack = buffer(ACK, writable as usize);
        self.driver.add(&readable, &[ack], None).unwrap();
        self.driver.publish().unwrap();
        self.device.refresh().unwrap();
        let popped = self.device.pop(&self.memory.guest, &mut self.chain);
        assert_eq!(popped, Ok(true));
        let served = control.serve(&mut self.chain, self.memory.table())?;
        self.device.push(&self.chain, served.written).unwrap();
        self.device.publish().unwrap();
        self.driver.refresh().unwrap();
        assert_eq!(self.driver.pop().unwrap().map(|used| used.written), Some(1));
        let mut answer = [0; 4];
        slice(ACK, 4).read(&mut answer);
        // Results of other commands would lie behind the answer.
        assert_eq!(answer[1..], [0xEE; 3]);
        assert_eq!(accepted(answer[0]), served.outcome.is_ok());
        Ok(served.outcome)
    }
}

#[test]
fn commands_come_through_a_queue_and_are_answered() {
    let (mut rig, mut control) = (Rig::new(), control());
    let bytes = Command::Pairs(3).to_bytes();
    assert_eq!(rig.serve(&mut control, &bytes, 1), Ok(Ok(Change::Steering)));
    assert_eq!(control.pairs(), 3);
    let bytes = Command::Pairs(9).to_bytes();
    let error = ControlError::Pairs { pairs: 9, max: 4 };
    assert_eq!(rig.serve(&mut control, &bytes, 4), Ok(Err(error)));
    assert_eq!(
        rig.serve(&mut control, &[], 1),
        Ok(Err(ControlError::NoCode { len: 0 }))
    );
    // A table that is longer than what is copied of a command.
    let macs = vec![OTHER.0; 2000];
    let table = Command::MacTable {
        unicast: MacList::Listed(&macs),
        multicast: MacList::Listed(&[]),
    };
    let served = rig.serve(&mut control, &table.to_bytes(), 1);
    assert_eq!(served, Ok(Ok(Change::Filter)));
    let served = rig.serve(&mut control, &bytes, 0);
    assert!(
        matches!(served, Err(QueueError::NoRoom { .. })),
        "{served:?}"
    );
}
