"""Our own conversation with ``/dev/fuse``: no C library, no paths, nodes as the kernel knows them.

``wire`` is the format, ``session`` reads and answers, ``requests`` and ``openfiles`` translate into operations of
``Tree``, ``mounting`` begins and ends it.
"""
