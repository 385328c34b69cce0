//! What std has no word for: how much a thread counts.

use std::io;

/// The calling thread, and those that it starts, from now on take what processor time others leave. Linux keeps
/// a nice value for each thread, and new ones inherit it (nptl(7), sched(7)).
///
/// # Errors
/// The kernel's.
pub fn stand_back() -> io::Result<()> {
    rustix::process::nice(19)?;
    Ok(())
}

/// The calling thread, and those that it starts, from now on are given the processor before others: for one that has
/// little to do and that many wait for.
///
/// # Errors
/// The kernel's: it takes `CAP_SYS_NICE`.
pub fn go_before() -> io::Result<()> {
    rustix::process::nice(-10)?;
    Ok(())
}
