"""Copy-up: an object moves to the upper, all of it or nothing.

Everything is staged in the work directory and renamed into place; a crash at any point leaves the old object or the new
one (overlayfs.rst, "Non-directories", "metadata only copy up", "index"). Data are copied without holding the tree's
lock.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from unionfs._sys.data import copy_data, write_all
from unionfs.layer.protocol import DT_LNK, DT_REG, Layer, LayerDir, LayerFile, Marks, WritableLayer
from unionfs.union.heal import heal
from unionfs.union.node import DirNode, FileNode

if TYPE_CHECKING:
    from unionfs.union.reader import TreeReader

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
# Attributes that a file system or an unprivileged process may not be able to hold; all else must be copied.
_OPTIONAL = (b"trusted.", b"security.", b"system.nfs4_acl", b"btrfs.")
_CAPABILITY = b"security.capability"


def copy_file(src: LayerFile, dst: LayerFile, limit: int | None = None, st: os.stat_result | None = None) -> bool:
    """Copy the data, holes kept, at most ``limit`` bytes of them; ``dst`` is a new file, or has the source's size.

    ``st``: the source's metadata, if they are known. Answers whether there is something to flush.
    """
    if st is None:
        st = src.stat()
    here, there = src.fileno(), dst.fileno()
    if here is not None and there is not None:
        return copy_data(here, there, st, limit)
    size = st.st_size if limit is None else min(limit, st.st_size)
    position = 0
    while position < size:
        try:
            position = src.seek(position, os.SEEK_DATA)
            end = min(src.seek(position, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        while position < end:
            block = src.pread(min(_CHUNK, end - position), position)
            if not block:
                break
            if there is not None:
                write_all(there, block, position)
            else:
                dst.pwrite(block, position)
            position += len(block)
    dst.truncate(size)
    return True


def copy_metadata(
    layer: Layer, d: LayerDir, name: bytes, st: os.stat_result, upper: WritableLayer, d2: LayerDir, name2: bytes
) -> None:
    """Owner, permissions, attributes (ACLs and capabilities among them) and times, in the order that keeps them."""
    upper.setattr(d2, name2, uid=st.st_uid, gid=st.st_gid)
    if not stat.S_ISLNK(st.st_mode):
        upper.setattr(d2, name2, mode=stat.S_IMODE(st.st_mode))
    for key in layer.listxattr(d, name):
        with tolerated(key):
            upper.setxattr(d2, name2, key, layer.getxattr(d, name, key))
    upper.setattr(d2, name2, times=(st.st_atime_ns, st.st_mtime_ns))


class tolerated:  # noqa: N801
    """An attribute that can't be kept here: said, and gone on, if it is one of those that may not be."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, OSError) or not self.key.startswith(_OPTIONAL):
            return False
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENODATA, errno.EACCES):
            return False
        log.warning("attribute %s can't be kept: %s", self.key.decode(errors="replace"), error.strerror)
        return True


def copy_up_dir(tree: TreeReader, d: DirNode) -> LayerDir:
    """The directory's place in the upper, made if need be, with all above it. The tree's lock is held."""
    missing: list[DirNode] = []
    while (place := tree.sources(d)[0]).layer is not tree.upper:
        missing.append(d)
        assert d.parent is not None
        d = d.parent
    for d in reversed(missing):
        assert d.parent is not None
        try:
            place = _copy_up_one(tree, d, place)
        except BaseException:
            heal(tree, (d.parent, d.name))
            raise
    return place


def _copy_up_one(tree: TreeReader, d: DirNode, parent: LayerDir) -> LayerDir:
    upper = tree.upper
    assert upper is not None
    assert d.parent is not None
    home, lname = tree.home_of(d)
    st = home.layer.stat(home, lname)
    temp = upper.temp_name()
    with _Staged(tree, temp):
        upper.mkdir(upper.staging, temp, 0o700)
        upper.set_marks(upper.staging, temp, Marks(ino=d.ino))
        copy_metadata(home.layer, home, lname, st, upper, upper.staging, temp)
        with kept_times(upper, parent):
            upper.rename(upper.staging, temp, parent, d.name)
    place = parent.child(d.name)
    tree.sources(d).insert(0, place)
    tree.shadow(d).clear()
    tree.shadow(d.parent).add(d.name)
    tree.touched(d)
    return place


class _Staged:
    """What is staged under ``temp`` goes when the step fails."""

    def __init__(self, tree: TreeReader, temp: bytes) -> None:
        self.tree, self.temp = tree, temp

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            try:
                _clear(self.tree, self.temp)
            except OSError as second:
                log.warning("staging not cleared: %s", second)


def _clear(tree: TreeReader, temp: bytes) -> None:
    """What is staged under ``temp`` goes. A frozen upper has left its staging to the fresh one."""
    assert tree.upper is not None
    try:
        tree.upper.clear(tree.upper.staging, temp)
    except FileNotFoundError:
        pass


def _discard(tree: TreeReader, file: LayerFile) -> None:
    """A staged file is not needed."""
    assert tree.upper is not None
    try:
        tree.upper.discard(file)
    except FileNotFoundError:
        file.close()  # It was staged by name, in memory, and the upper is another now.


@contextlib.contextmanager
def kept_times(upper: WritableLayer, d: LayerDir) -> Iterator[None]:
    """What is done to the entries of ``d`` does not show in its times."""
    before = upper.stat(d, b".")
    yield
    with afterwards("the times of a directory"):
        upper.setattr(d, b".", times=(before.st_atime_ns, before.st_mtime_ns))


@contextlib.contextmanager
def afterwards(what: str) -> Iterator[None]:
    """The change is made: it is no failure of it when ``what`` can't be cleared up now. The next open does."""
    try:
        yield
    except OSError as error:
        log.warning("%s: not cleared up: %s", what, error)


def copy_up_file(tree: TreeReader, n: FileNode, *, data: bool = True, limit: int | None = None) -> LayerFile | None:
    """Make the upper hold ``n``; its bytes too where ``data``, at most ``limit`` of them.

    Not to be called with the tree's lock held: it may wait for another thread that copies the same file, which needs
    the lock in the end. Where this has just left the file open, for reading and writing, that is the answer.
    """
    file = None
    while not is_copied_up(tree, n, data):
        with tree.lock:
            if n.busy is None:
                n.busy = threading.Lock()
            busy = n.busy
        with busy:
            if is_copied_up(tree, n, data):
                break
            upper = tree.upper
            try:
                if n.home.layer is upper and n.names is not None:
                    _complete(tree, n)
                elif n.kind == DT_REG:
                    file = _copy_up_regular(tree, n, data, limit)
                else:
                    _copy_up_special(tree, n)
            except OSError:
                if upper is tree.upper:
                    raise
                # Frozen meanwhile: once more, into the fresh one.
    return file


def copy_up_at_once(tree: TreeReader, n: FileNode) -> None:
    """Make the upper hold ``n``, with the tree's lock held. A thread that copies the same file begins again."""
    if n.home.layer is tree.upper:
        return
    if n.kind == DT_REG:
        _copy_up_regular(tree, n, not tree.metacopy, None)
    else:
        _copy_up_special(tree, n)


def is_copied_up(tree: TreeReader, n: FileNode, data: bool) -> bool:
    """Whether the upper holds ``n``, and its bytes where ``data``."""
    if n.home.layer is not tree.upper:
        return False
    return not data or n.kind != DT_REG or tree.data_of(n) is None


def _copy_up_regular(tree: TreeReader, n: FileNode, data: bool, limit: int | None) -> LayerFile | None:
    """One try: nothing has happened when the upper was frozen, or the file copied up or moved, meanwhile."""
    with tree.lock:
        upper = tree.upper
        assert upper is not None
        home, lname = n.home, n.lname
        bytes_at = tree.data_of(n) or (home, lname)
        redirect = _redirect(tree, n)
        copies = data or not tree.metacopy or n.dead
        whole = bytes_at == (home, lname)
        # Of a metacopy that lost its name, the metadata are in the file that is open; another may have the name.
        kept = n.kept if n.nameless and home.layer is upper else None
    source = _source(*bytes_at) if copies and limit != 0 else None
    if kept is not None:
        st = kept.stat()
    else:
        st = source.stat() if source is not None and whole else home.layer.stat(home, lname)
    file = upper.stage()
    try:
        marks = Marks(ino=n.ino)
        written = False
        if not copies and st.st_size:
            file.truncate(st.st_size)
            marks = Marks(ino=n.ino, metacopy=True, redirect=redirect)
        elif source is not None and st.st_size:
            written = copy_file(source, file, limit, st if whole else None)
        restaged = home.layer is upper  # a metacopy, whose metadata may change meanwhile
        if not restaged:
            _dress(upper, file, home, lname, st, marks, source if whole else None, limit)
        if written and not upper.volatile:
            file.fsync()
        with tree.lock:
            if tree.lent is not None:
                raise OSError(errno.EBUSY, tree.lent)
            if upper is not tree.upper or n.home is not home or n.lname != lname or (restaged and n.names is not None):
                _discard(tree, file)
                return None
            if kept is not None:
                _dress(upper, file, home, lname, kept.stat(), marks, kept, limit)
            elif restaged:
                _dress(upper, file, home, lname, upper.stat(home, lname), marks, None, limit)
            if n.dead or n.parent is None:
                _settle_dead(tree, n, file)
            else:
                _settle(tree, n, file, bytes_at if marks.metacopy else None)
    except BaseException:
        _discard(tree, file)
        raise
    return file


def _source(home: LayerDir, name: bytes) -> LayerFile | None:
    """The bytes to copy; ``None`` for an empty file that this process may not read: there are none."""
    try:
        return home.layer.open(home, name, os.O_RDONLY)
    except PermissionError:
        if home.layer.stat(home, name).st_size:
            raise
        return None


def _dress(
    upper: WritableLayer,
    file: LayerFile,
    home: LayerDir,
    lname: bytes,
    st: os.stat_result,
    marks: Marks,
    source: LayerFile | None,
    limit: int | None,
) -> None:
    """Give the staged file the metadata of ``lname`` in ``home``; ``source``: the same, if it is open."""
    upper.dress(file, st, marks)
    if source is not None:
        for key in source.listxattr():
            with tolerated(key):
                file.setxattr(key, source.getxattr(key))
    else:
        for key in home.layer.listxattr(home, lname):
            with tolerated(key):
                file.setxattr(key, home.layer.getxattr(home, lname, key))
    # What is cut off on the way has changed, the rest has not.
    file.setattr(times=(st.st_atime_ns, st.st_mtime_ns if limit is None else time.time_ns()))


def _copy_up_special(tree: TreeReader, n: FileNode) -> None:
    """A symbolic link, device, FIFO or socket: one try, as above."""
    upper = tree.upper
    assert upper is not None
    home, lname = n.home, n.lname
    st = home.layer.stat(home, lname)
    temp = upper.temp_name()
    with _Staged(tree, temp):
        if n.kind == DT_LNK:
            upper.symlink(upper.staging, temp, home.layer.readlink(home, lname))
        else:
            upper.mknod(upper.staging, temp, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev)
        upper.set_marks(upper.staging, temp, Marks(ino=n.ino))
        copy_metadata(home.layer, home, lname, st, upper, upper.staging, temp)
        with tree.lock:
            if upper is not tree.upper or n.home is not home or n.lname != lname:
                _clear(tree, temp)
            elif n.parent is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), n.name)
            else:
                _settle(tree, n, temp, None)


def _redirect(tree: TreeReader, n: FileNode) -> bytes | None:
    """Where the layers below have the bytes, if the name alone does not say it: of a hard link, kept in the index."""
    if n.names is None or n.parent is None:
        return None
    return tree.lower_path(n.parent) + b"/" + n.name


def _settle(tree: TreeReader, n: FileNode, staged: LayerFile | bytes, data: tuple[LayerDir, bytes] | None) -> None:
    """The staged copy (a file, or a name in staging) takes the node's place. The tree's lock is held."""
    parent, name = n.parent, n.name
    assert parent is not None
    try:
        _publish(tree, n, staged, data)
    except BaseException:
        heal(tree, (parent, name))
        raise


def _publish(tree: TreeReader, n: FileNode, staged: LayerFile | bytes, data: tuple[LayerDir, bytes] | None) -> None:
    upper = tree.upper
    assert upper is not None
    assert n.parent is not None
    below = n.home.layer is not upper
    parent = copy_up_dir(tree, n.parent)
    if n.names is None and below and not isinstance(staged, bytes):
        with kept_times(upper, parent):
            upper.place(staged, parent, n.name)
        n.home, n.lname, n.data = parent, n.name, data
    else:
        temp = staged if isinstance(staged, bytes) else upper.temp_name()
        if not isinstance(staged, bytes):
            upper.place(staged, upper.staging, temp)
        with _Staged(tree, temp):
            if n.names is None:
                with kept_times(upper, parent):
                    upper.rename(upper.staging, temp, parent, n.name)
                n.home, n.lname, n.data = parent, n.name, data
            else:
                tree.links.copied_up(n, temp, parent, tree.stat(n).st_nlink, data)
    n.kept = None
    if below:
        tree.shadow(n.parent).add(n.name)
    for opened in n.open or ():
        opened.switch(tree.open_data(n))
    tree.touched(n)


def _settle_dead(tree: TreeReader, n: FileNode, file: LayerFile) -> None:
    """The node is open, but has no name: so is the copy. The tree's lock is held."""
    upper = tree.upper
    assert upper is not None
    temp = upper.temp_name()
    upper.place(file, upper.staging, temp)
    with _Staged(tree, temp):
        files = [(opened, upper.open(upper.staging, temp, opened.flags & os.O_ACCMODE)) for opened in n.open or ()]
    upper.unlink(upper.staging, temp)
    n.home, n.lname, n.data, n.kept = upper.staging, temp, None, None
    for opened, again in files:
        opened.switch(again)
    tree.touched(n)


def _complete(tree: TreeReader, n: FileNode) -> None:
    """Bring the bytes to a metacopy with several names: it stays a metacopy until they are all there. One try."""
    with tree.lock:
        if n.dead:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), n.name)
        upper = tree.upper
        assert upper is not None
        found = tree.data_of(n)
        if n.home.layer is not upper or found is None:
            return
        file = upper.open(n.home, n.lname, os.O_RDWR)
        source = found[0].layer.open(*found, os.O_RDONLY)
    st = file.stat()
    capability = file.getxattr(_CAPABILITY) if _CAPABILITY in file.listxattr() else None
    written = copy_file(source, file)
    source.close()
    # Writing has taken the capabilities and, without root, the set-id bits (capabilities(7), inode(7)).
    if capability is not None:
        file.setxattr(_CAPABILITY, capability)
    if file.stat().st_mode != st.st_mode:
        file.setattr(mode=stat.S_IMODE(st.st_mode))
    file.setattr(times=(st.st_atime_ns, st.st_mtime_ns))
    if written and not upper.volatile:
        file.fsync()
    with tree.lock:
        if upper is not tree.upper or n.dead:
            return
        marks = upper.marks(n.home, n.lname)
        upper.set_marks(n.home, n.lname, attrs.evolve(marks, metacopy=False, redirect=None))
        n.data = None
        for opened in n.open or ():
            opened.switch(upper.open(n.home, n.lname, os.O_RDONLY))
        tree.touched(n)


def stage_area(upper: WritableLayer, like: LayerDir) -> tuple[LayerDir, bytes | None]:
    """A directory in staging whose new entries inherit what those of ``like`` would: group and default ACL.

    Answers the directory and the name to clear afterwards, if one was made.
    """
    st = upper.stat(like, b".")
    acl = b"system.posix_acl_default"
    has_acl = acl in upper.listxattr(like, b".")
    if not has_acl and not st.st_mode & stat.S_ISGID:
        return upper.staging, None
    temp = upper.temp_name()
    area = upper.mkdir(upper.staging, temp, 0o700)
    upper.setattr(area, b".", mode=stat.S_IMODE(st.st_mode) | 0o700, gid=st.st_gid)
    if has_acl:
        upper.setxattr(area, b".", acl, upper.getxattr(like, b".", acl))
    return area, temp
