//! What this process may hand down to a container.

/// The hard limit of open files of this process, which it can't exceed for others either.
pub fn own_nofile() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Whether a capability is in its bounding set.
pub fn in_bounding_set(name: &str) -> bool {
    use rustix::thread::{CapabilitySet, capability_is_in_bounding_set};
    let capability = match name {
        "CAP_CHOWN" => CapabilitySet::CHOWN,
        "CAP_DAC_OVERRIDE" => CapabilitySet::DAC_OVERRIDE,
        "CAP_FSETID" => CapabilitySet::FSETID,
        "CAP_FOWNER" => CapabilitySet::FOWNER,
        "CAP_MKNOD" => CapabilitySet::MKNOD,
        "CAP_NET_RAW" => CapabilitySet::NET_RAW,
        "CAP_SETGID" => CapabilitySet::SETGID,
        "CAP_SETUID" => CapabilitySet::SETUID,
        "CAP_SETFCAP" => CapabilitySet::SETFCAP,
        "CAP_SETPCAP" => CapabilitySet::SETPCAP,
        "CAP_NET_BIND_SERVICE" => CapabilitySet::NET_BIND_SERVICE,
        "CAP_SYS_CHROOT" => CapabilitySet::SYS_CHROOT,
        "CAP_KILL" => CapabilitySet::KILL,
        "CAP_AUDIT_WRITE" => CapabilitySet::AUDIT_WRITE,
        _ => return false,
    };
    capability_is_in_bounding_set(capability).unwrap_or(false)
}
