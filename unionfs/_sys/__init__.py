"""What the kernel offers and Python's ``os`` does not: the only home of ctypes, ioctl and kernel structs."""
