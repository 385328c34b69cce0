//! FUSE, spoken with the kernel directly: mounting, the handshake, requests and replies.
//!
//! Only what a read-only file system needs, in the words of `include/uapi/linux/fuse.h` (protocol 7.45,
//! Linux 6.18; 7.12 and newer are spoken to). Requests are parsed out of bytes with bounds checks, replies
//! are put together byte by byte: no struct is ever cast. All fields are in the machine's own byte order.
//!
//! Inode numbers are the server's own and stay what they are, files need no open and folders neither, so a
//! [`Session`] has no state but what was negotiated and which requests are in work: whoever has its descriptors,
//! a list of these among them, can go on with it ([`Session::from_fds`]). When the last holder of the descriptors
//! dies, the kernel fails every read with ENOTCONN.

mod device;
mod in_work;
mod mount;
mod reply;
mod request;
mod serve;
mod session;

pub use device::Device;
pub(crate) use in_work::InWork;
pub use mount::{
    Detached, MountOptions, find_helper, mount, mount_by_helper, set_readahead, unmount, unmount_by_helper,
};
pub use reply::{
    Attributes, Entry, FileSystem, Listing, attributes, entry, negative_entry, statfs, xattr_size,
};
pub use request::{Operation, Request, RequestError};
pub use serve::{Answer, Handler};
pub(crate) use serve::{is_left_waiting, refuse_asked, refuse_left};
pub use session::{Negotiated, Session};

/// The inode number of a session's root folder.
pub const ROOT: u64 = 1;
