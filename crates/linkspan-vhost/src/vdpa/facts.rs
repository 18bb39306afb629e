//! What a device says of itself, checked once.

use alloc::vec::Vec;

use linkspan_mem::Iova;
use thiserror::Error;

use super::backend;

/// The most queues that a device may have: as many as QEMU takes.
pub const MAX_QUEUES: u32 = 1024;

/// No configuration space of virtio 1.3 has more than some hundred bytes.
const MAX_CONFIG: u32 = 4096;

/// The answers of a device, unchecked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw {
    /// Its virtio type.
    pub device_id: u32,
    /// Virtio features that it offers.
    pub features: u64,
    /// What its vhost side can do.
    pub backend_features: u64,
    /// Queues; `None`: the kernel is too old to say (before 5.18).
    pub queues: Option<u32>,
    /// The largest size of any queue.
    pub queue_size_max: u16,
    /// The largest size of each queue, where it says so.
    pub queue_sizes: Vec<Option<u32>>,
    /// Bytes of configuration space.
    pub config_size: u32,
    /// The first and the last address that can be mapped.
    pub iova: (Iova, Iova),
    /// Groups of queues.
    pub groups: u32,
    /// Address spaces.
    pub address_spaces: u32,
    /// The group of each queue, where it says so.
    pub ring_groups: Vec<Option<u32>>,
}

/// What a device says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// Its virtio type.
    pub device_id: u32,
    /// Virtio features that it offers.
    pub features: u64,
    /// What its vhost side can do and is used.
    pub backend_features: u64,
    /// Queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// The largest size of each queue: powers of two.
    pub queue_sizes: Vec<u16>,
    /// Bytes of configuration space.
    pub config_size: u32,
    /// The first and the last address that can be mapped.
    pub iova: (Iova, Iova),
    /// Groups of queues.
    pub groups: u32,
    /// Address spaces.
    pub address_spaces: u32,
    /// The group of each queue, where it says so.
    pub ring_groups: Vec<Option<u32>>,
}

/// Why a device cannot be used as it is, or not as it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FactsError {
    /// No queue, or too many.
    #[error("the device has {queues} queues; 1 to {MAX_QUEUES} can be used")]
    Queues {
        /// How many it says.
        queues: u32,
    },
    /// Linux before 5.18.
    #[error("the kernel does not say how many queues the device has; Linux 5.18 and newer do")]
    NoQueueCount,
    /// A queue that cannot have an entry.
    #[error("queue {ring} of the device can have {size} entries")]
    QueueSize {
        /// The queue.
        ring: u16,
        /// What it says.
        size: u32,
    },
    /// Larger queues are wanted than there are.
    #[error("queues of {wanted} entries were wanted, queue {ring} of the device has {max} at most")]
    TooLarge {
        /// Entries wanted.
        wanted: u32,
        /// The queue.
        ring: u16,
        /// The most.
        max: u16,
    },
    /// A size that no queue has.
    #[error("queues of {wanted} entries were wanted; the number has to be a power of two")]
    NoPower {
        /// Entries wanted.
        wanted: u32,
    },
    /// A configuration space that cannot be.
    #[error("a configuration space of {size} bytes; {MAX_CONFIG} are possible")]
    Config {
        /// Its size.
        size: u32,
    },
    /// An empty range of addresses.
    #[error("the device can map addresses from {first:#x} to {last:#x}")]
    Range {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// Memory that the device cannot reach.
    #[error(
        "{len:#x} bytes at address {iova:#x} are outside of what the device reaches, \
         {first:#x} to {last:#x}"
    )]
    Unreachable {
        /// Where they would be.
        iova: u64,
        /// How many.
        len: u64,
        /// The first address that can be mapped.
        first: u64,
        /// The last one.
        last: u64,
    },
}

impl Facts {
    /// Checks what a device says.
    ///
    /// # Errors
    /// When something of it cannot be used.
    pub fn check(raw: Raw) -> Result<Self, FactsError> {
        let count = raw.queues.ok_or(FactsError::NoQueueCount)?;
        let queues = u16::try_from(count)
            .ok()
            .filter(|_| (1..=MAX_QUEUES).contains(&count))
            .ok_or(FactsError::Queues { queues: count })?;
        let mut queue_sizes = Vec::with_capacity(queues.into());
        for ring in 0..queues {
            let said = raw.queue_sizes.get(usize::from(ring)).copied().flatten();
            let size = said.unwrap_or_else(|| raw.queue_size_max.into());
            // The device's own number need not be one, a queue's has to be.
            let most = u32::from(raw.queue_size_max).min(size).min(1 << 15);
            let Some(power) = most.checked_ilog2() else {
                return Err(FactsError::QueueSize { ring, size });
            };
            queue_sizes.push(1 << power);
        }
        if raw.config_size > MAX_CONFIG {
            let size = raw.config_size;
            return Err(FactsError::Config { size });
        }
        let (first, last) = (raw.iova.0.0, raw.iova.1.0);
        if first > last {
            return Err(FactsError::Range { first, last });
        }
        let mut ring_groups = raw.ring_groups;
        ring_groups.resize(queues.into(), None);
        for group in &mut ring_groups {
            *group = group.filter(|group| *group < raw.groups);
        }
        Ok(Self {
            device_id: raw.device_id,
            features: raw.features,
            backend_features: raw.backend_features & backend::WANTED,
            queues,
            queue_sizes,
            config_size: raw.config_size,
            iova: raw.iova,
            groups: raw.groups,
            address_spaces: raw.address_spaces,
            ring_groups,
        })
    }

    /// The size that the first `queues` queues get if `wanted` is asked for:
    /// 0 stands for the largest that all of them can have.
    ///
    /// # Errors
    /// With both numbers when one cannot be as large.
    pub fn queue_size(&self, queues: u16, wanted: u32) -> Result<u16, FactsError> {
        let sizes = (0..).zip(&self.queue_sizes).take(queues.into());
        let smallest = sizes.min_by_key(|(_, size)| **size);
        let (ring, max) = smallest.map_or((0, 1), |(ring, size)| (ring, *size));
        match u16::try_from(wanted) {
            Ok(0) => Ok(max),
            Ok(size) if size <= max && size.is_power_of_two() => Ok(size),
            Ok(size) if size <= max => Err(FactsError::NoPower { wanted }),
            _ => Err(FactsError::TooLarge { wanted, ring, max }),
        }
    }

    /// Whether the device reaches `len` bytes at `iova`.
    ///
    /// # Errors
    /// With the range that it reaches when it does not.
    pub fn check_range(&self, iova: Iova, len: u64) -> Result<(), FactsError> {
        let (first, last) = (self.iova.0.0, self.iova.1.0);
        let end = len
            .checked_sub(1)
            .and_then(|more| iova.0.checked_add(more))
            .filter(|end| iova.0 >= first && *end <= last);
        match end {
            Some(_) => Ok(()),
            None => Err(FactsError::Unreachable {
                iova: iova.0,
                len,
                first,
                last,
            }),
        }
    }

    /// Whether its queues say truthfully where they are before it is reset.
    #[must_use]
    pub fn can_suspend(&self) -> bool {
        self.backend_features & backend::SUSPEND != 0
    }

    /// Whether it goes on after that as if nothing had been.
    #[must_use]
    pub fn can_resume(&self) -> bool {
        self.can_suspend() && self.backend_features & backend::RESUME != 0
    }

    /// Whether a queue can be enabled when others run already.
    #[must_use]
    pub fn enables_late(&self) -> bool {
        self.backend_features & backend::ENABLE_AFTER_DRIVER_OK != 0
    }

    /// Whether queue `ring` can have an address space for itself: its group has no
    /// other queue, and there are two address spaces.
    #[must_use]
    pub fn is_alone(&self, ring: u16) -> bool {
        let group = self.ring_groups.get(usize::from(ring)).copied().flatten();
        self.backend_features & backend::IOTLB_ASID != 0
            && self.address_spaces > 1
            && group.is_some_and(|group| {
                let all = self.ring_groups.iter();
                all.filter(|other| **other == Some(group)).count() == 1
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    fn raw() -> Raw {
        Raw {
            device_id: 2,
            queues: Some(3),
            queue_size_max: 256,
            config_size: 60,
            iova: (Iova(0), Iova(u64::MAX)),
            groups: 2,
            address_spaces: 2,
            backend_features: backend::WANTED,
            ring_groups: vec![Some(0), Some(0), Some(1)],
            ..Raw::default()
        }
    }

    #[test]
    fn no_queue_and_more_than_1024_are_refused() {
        for queues in [0, 1025, u32::MAX] {
            let raw = Raw {
                queues: Some(queues),
                ..raw()
            };
            assert_eq!(Facts::check(raw), Err(FactsError::Queues { queues }));
        }
        for queues in [1, 1024] {
            let raw = Raw {
                queues: Some(queues),
                ..raw()
            };
            assert_eq!(u32::from(Facts::check(raw).unwrap().queues), queues);
        }
    }

    #[test]
    fn zero_is_the_maximum_and_more_is_refused_with_both_numbers() {
        let facts = Facts::check(raw()).unwrap();
        assert_eq!(facts.queue_size(3, 0), Ok(256));
        assert_eq!(facts.queue_size(3, 256), Ok(256));
        assert_eq!(facts.queue_size(3, 64), Ok(64));
        for wanted in [257, 512, 65536, u32::MAX] {
            let error = facts.queue_size(3, wanted).unwrap_err().to_string();
            assert!(error.contains(&wanted.to_string()) && error.contains("256"));
        }
        let error = facts.queue_size(3, 100).unwrap_err();
        assert_eq!(error, FactsError::NoPower { wanted: 100 });
    }

    #[test]
    fn each_queue_has_its_own_largest_size() {
        let sizes = vec![Some(64), None, Some(1000)];
        let facts = Facts::check(Raw {
            queue_sizes: sizes,
            ..raw()
        });
        let facts = facts.unwrap();
        assert_eq!(facts.queue_sizes, [64, 256, 256]);
        assert_eq!(facts.queue_size(2, 0), Ok(64));
        let error = facts.queue_size(2, 128).unwrap_err();
        let (wanted, ring, max) = (128, 0, 64);
        assert_eq!(error, FactsError::TooLarge { wanted, ring, max });
        for (size, said) in [(0, None), (256, Some(0))] {
            let none = Facts::check(Raw {
                queue_size_max: size,
                queue_sizes: vec![said],
                ..raw()
            });
            assert!(matches!(none, Err(FactsError::QueueSize { ring: 0, .. })));
        }
    }

    /// QEMU 013108b6e5.
    #[test]
    fn memory_outside_the_range_is_refused_before_the_kernel_is_asked() {
        let iova = (Iova(0x1000), Iova(0xffff));
        let facts = Facts::check(Raw { iova, ..raw() }).unwrap();
        assert_eq!(facts.check_range(Iova(0x1000), 0xf000), Ok(()));
        for (iova, len) in [
            (0xfff, 1),
            (0x1000, 0xf001),
            (0x10000, 1),
            (0x2000, 0),
            (u64::MAX, u64::MAX),
        ] {
            let refused = facts.check_range(Iova(iova), len);
            assert!(matches!(refused, Err(FactsError::Unreachable { .. })));
        }
        let all = Facts::check(raw()).unwrap();
        assert_eq!(all.check_range(Iova(u64::MAX), 1), Ok(()));
    }

    /// QEMU 2fbef6aad8: such a span cannot be taken back with one message, since its
    /// length is no number of 64 bits.
    #[test]
    fn a_span_of_all_64_bits_cannot_be_mapped() {
        let iova = (Iova(0), Iova(u64::MAX));
        let facts = Facts::check(Raw { iova, ..raw() }).unwrap();
        let len = u64::MAX.wrapping_add(1);
        let refused = facts.check_range(Iova(0), len);
        assert!(matches!(refused, Err(FactsError::Unreachable { .. })));
        assert_eq!(facts.check_range(Iova(0), u64::MAX), Ok(()));
    }

    #[test]
    fn a_queue_alone_in_its_group_can_have_an_address_space() {
        let facts = Facts::check(raw()).unwrap();
        assert!(facts.is_alone(2) && !facts.is_alone(0) && !facts.is_alone(9));
        for raw in [
            Raw {
                address_spaces: 1,
                ..raw()
            },
            Raw {
                backend_features: 0,
                ..raw()
            },
            Raw { groups: 1, ..raw() },
        ] {
            assert!(!Facts::check(raw).unwrap().is_alone(2));
        }
    }
}
