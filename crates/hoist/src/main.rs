fn main() -> std::process::ExitCode {
    // Must come first: the guard of a mount's fanotify group is this same program, called by another name.
    let inheritance = hoist_sys::keeper::main_if_asked();
    hoist::main(inheritance)
}
