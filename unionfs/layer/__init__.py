"""What one layer holds: the protocol, a directory, memory; and the encodings of whiteouts, marks and owners."""
