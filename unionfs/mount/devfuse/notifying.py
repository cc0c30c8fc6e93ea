"""Telling the kernel what changes past it.

The kernel takes a directory's lock to invalidate an entry, which a process may hold that waits for an answer of ours;
so it is told neither by who changes the tree nor by who answers, but by a thread that does nothing else.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unionfs.mount.devfuse import wire
from unionfs.mount.devfuse.nodes import NodeTable
from unionfs.mount.devfuse.requests import Requests
from unionfs.mount.devfuse.session import Session

if TYPE_CHECKING:
    from unionfs.union.node import DirNode, Node
    from unionfs.union.tree import Tree

_ANSWERED_WITHIN = 1.0  # seconds; what takes longer copies bytes, and tells of nothing but its own file


class Notifier:
    """Follows the tree for one mount. ``sole``: nobody else changes it, so only a restack is to be told.

    Of a restack the kernel is told name by name and node by node what differs, whatever its protocol. One message by
    which it drops all that it believes (FUSE_NOTIFY_INC_EPOCH, Linux 6.16) would do more harm: it takes away what is
    mounted on a directory of the union, though that is the same as before.
    """

    def __init__(self, tree: Tree, nodes: NodeTable, session: Session, requests: Requests, *, sole: bool) -> None:
        self._tree = tree
        self._nodes = nodes
        self._session = session
        self._requests = requests
        self._sole = sole
        self._queue: queue.SimpleQueue[tuple[Node, bytes | None] | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="unionfs notify", daemon=True)
        self._ended = False
        self._thread.start()
        tree.follow(self)
        if not sole:
            tree.subscribe(self._changed)

    def _changed(self, n: Node, name: bytes | None) -> None:
        if not self._ended and threading.get_ident() not in self._session.idents:
            self._queue.put((n, name))

    def before(self, names: Sequence[tuple[DirNode, bytes]]) -> None:
        """See ``union.restack.Follower``."""
        for d, name in names:
            self._nodes.before_change(d, name)

    def after(self, told: Sequence[tuple[Node, bytes | None]]) -> None:
        """See ``union.restack.Follower``: to return when the kernel knows."""
        # Answers from before are with the kernel, and none that is begun now is from what was kept.
        self._requests.restacked()
        self._session.settle(_ANSWERED_WITHIN)
        self._requests.restacked()
        if self._sole:
            # Names first: by this the kernel has let go of the directories that are being listed.
            for item in sorted(told, key=lambda item: item[1] is None):
                self._queue.put(item)
        done = threading.Event()
        self._queue.put(done)
        while not done.wait(0.1) and self._thread.is_alive():
            pass

    def end(self) -> None:
        """No more is told from now on: the connection is about to be closed, and its number to be another file's."""
        self._ended = True
        self._tree.unfollow(self)
        self._tree.unsubscribe(self._changed)
        self._queue.put(None)
        self._thread.join(1.0)  # One that waits in the kernel goes on when the connection is closed, and then ends.

    def _run(self) -> None:
        while (item := self._queue.get()) is not None and not self._ended:
            if isinstance(item, threading.Event):
                item.set()
                continue
            n, name = item
            number = self._nodes.number(n)
            if number is None:
                continue
            if name is None:
                self._drop(number)
                continue
            entry = wire.INVAL_ENTRY_OUT.pack(number, len(name), 0)
            self._session.notify(wire.message(wire.NOTIFY_INVAL_ENTRY, entry, name, b"\0"))
            shelved = self._nodes.shelved(n, name)
            if shelved is not None:
                self._drop(shelved)

    def _drop(self, number: int) -> None:
        """Attributes and pages."""
        self._session.notify(wire.message(wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(number, 0, 0)))
