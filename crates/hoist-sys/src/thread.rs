//! What std has no word for: how much a thread counts.

use std::io;

/// The calling thread, and those that it starts, from now on take what processor time others leave. Linux keeps
/// a nice value for each thread, and new ones inherit it (nptl(7), sched(7)).
///
/// # Errors
/// The kernel's.
pub fn stand_back() -> io::Result<()> {
    give_way(19)
}

/// The calling thread, and those that it starts, from now on count less than others by so many nice values.
///
/// # Errors
/// The kernel's.
pub fn give_way(by: i32) -> io::Result<()> {
    rustix::process::nice(by)?;
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

#[cfg(test)]
mod tests {
    /// Field 19 (proc(5), `stat`).
    fn nice_value() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn a_thread_gives_way_alone() {
        let before = nice_value();
        let given = std::thread::spawn(|| super::give_way(3).map(|()| nice_value())).join().unwrap().unwrap();
        assert_eq!((given, nice_value()), ((before + 3).min(19), before));
    }
}
