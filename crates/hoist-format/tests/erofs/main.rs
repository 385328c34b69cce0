//! EROFS images judged by others: the kernel's mount, `fsck.erofs` and `mkfs.erofs`.
//! The mounts need root.

mod hostile;
mod kernel;
mod limits;
mod round_trip;
mod support;
mod tools;
