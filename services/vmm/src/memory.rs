//! Guest memory as the platform sees it.

use zerocopy::{FromBytes, IntoBytes};

/// A guest-physical address.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct GuestPhysAddr(pub u64);

/// A guest-virtual (linear) address.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct GuestVirtAddr(pub u64);

/// There is no memory there, or not all of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotMemory(pub GuestPhysAddr);

/// The guest's memory. The guest changes it at any time, so every access is a copy; one that is aligned and of 1, 2, 4 or 8
/// bytes is a single access.
pub trait GuestMemory {
    /// Copies out of guest memory.
    ///
    /// # Errors
    /// [`NotMemory`], and nothing is copied.
    fn read(&self, at: GuestPhysAddr, into: &mut [u8]) -> Result<(), NotMemory>;

    /// Copies into guest memory.
    ///
    /// # Errors
    /// [`NotMemory`], and nothing is copied.
    fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]) -> Result<(), NotMemory>;

    /// Replaces the aligned 64-bit word `old` by `new` in one step; what was there, when it was another.
    ///
    /// # Errors
    /// [`NotMemory`], also for an address that is not aligned.
    fn compare_exchange_u64(
        &mut self,
        at: GuestPhysAddr,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, NotMemory>;

    /// The same for 32 bits.
    ///
    /// # Errors
    /// [`NotMemory`], also for an address that is not aligned.
    fn compare_exchange_u32(
        &mut self,
        at: GuestPhysAddr,
        old: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, NotMemory>;

    /// Reads a value.
    ///
    /// # Errors
    /// [`NotMemory`].
    fn get<T: FromBytes + IntoBytes>(&self, at: GuestPhysAddr) -> Result<T, NotMemory> {
        let mut value = T::new_zeroed();
        self.read(at, value.as_mut_bytes())?;
        Ok(value)
    }
}

#[cfg(test)]
pub mod testing {
    //! Guest memory in a vector, for tests.
    use super::{GuestMemory, GuestPhysAddr, NotMemory};
    use std::vec::Vec;

    /// Memory from address 0 on.
    #[derive(Clone, Debug)]
    pub struct Ram(pub Vec<u8>);

    impl Ram {
        /// So many bytes of zeros.
        pub fn new(bytes: usize) -> Self {
            Self(vec![0; bytes])
        }

        fn part(&self, at: GuestPhysAddr, bytes: usize) -> Result<core::ops::Range<usize>, NotMemory> {
            let start = usize::try_from(at.0).map_err(|_| NotMemory(at))?;
            let end = start.checked_add(bytes).filter(|&end| end <= self.0.len()).ok_or(NotMemory(at))?;
            Ok(start..end)
        }
    }

    macro_rules! compare_exchange {
        ($name:ident, $type:ty) => {
            fn $name(
                &mut self,
                at: GuestPhysAddr,
                old: $type,
                new: $type,
            ) -> Result<Result<$type, $type>, NotMemory> {
                if at.0 % size_of::<$type>() as u64 != 0 {
                    return Err(NotMemory(at));
                }
                let there: $type = self.get(at)?;
                if there != old {
                    return Ok(Err(there));
                }
                self.write(at, &new.to_le_bytes())?;
                Ok(Ok(old))
            }
        };
    }

    impl GuestMemory for Ram {
        fn read(&self, at: GuestPhysAddr, into: &mut [u8]) -> Result<(), NotMemory> {
            into.copy_from_slice(&self.0[self.part(at, into.len())?]);
            Ok(())
        }

        fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]) -> Result<(), NotMemory> {
            let part = self.part(at, bytes.len())?;
            self.0[part].copy_from_slice(bytes);
            Ok(())
        }

        compare_exchange!(compare_exchange_u64, u64);
        compare_exchange!(compare_exchange_u32, u32);
    }
}
