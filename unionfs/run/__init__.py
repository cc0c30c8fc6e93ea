"""A process in a merged root: namespaces, the root it sees, its signals, and what it changed brought to the host."""
