//! Arguments, configuration, the running proxy, an exit code.

fn main() {}
