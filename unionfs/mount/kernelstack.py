"""Which unions the kernel's overlayfs shows as we do, and the words for those that it does not.

Sources: Documentation/filesystems/overlayfs.rst; fs/overlayfs/params.c and super.c.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

import attrs

from unionfs.errors import MountError
from unionfs.layer import owners, whiteout
from unionfs.layer.directory import DirectoryLayer
from unionfs.layer.protocol import DT_DIR, DT_REG, Layer
from unionfs.layer.upper import UpperDirectory
from unionfs.mount import mountinfo
from unionfs.union.tree import Tree


@attrs.frozen
class KernelStack:
    """Layers that overlayfs can mount. ``lowers``: topmost first. ``userxattr``: marks are in ``user.overlay.*``, and
    so redirects and metacopies are neither followed nor made ("User xattr")."""

    lowers: tuple[DirectoryLayer, ...]
    upper: UpperDirectory | None
    userxattr: bool
    redirect_dir: bool
    metacopy: bool

    @property
    def layers(self) -> tuple[DirectoryLayer, ...]:
        """All of them, topmost first."""
        return self.lowers if self.upper is None else (self.upper, *self.lowers)

    def check_index(self) -> None:
        """Raise ``MountError`` (``EOPNOTSUPP``) if the upper's index holds hard links: said where overlayfs has it off,
        and their names would come apart."""
        if self.upper is not None and self.upper.index is not None and self.upper.scan(self.upper.index):
            raise _cannot(self.upper.path, "it works without an index here, in which the upper has hard links")

    def check_marks(self, *, redirect: bool, metacopy: bool) -> None:
        """Raise ``MountError`` (``EOPNOTSUPP``) if a layer has redirects, or metacopies: said of what overlayfs is not
        going to follow. Layers without a mark on their root have none (docs/format.md)."""
        if not (redirect or metacopy):
            return
        for layer in self.layers:
            if not list(_marks_on_root(layer)):
                continue
            found = _first_marked(layer, redirect, metacopy)
            if found is not None:
                kind = "marks in user.overlay" if self.userxattr else "metacopy=off"
                what = f"{os.fsdecode(found)} is a redirect or a metacopy, which overlayfs does not follow with {kind}"
                raise _cannot(layer.path, what)


def _cannot(where: str, what: str) -> MountError:
    return MountError(errno.EOPNOTSUPP, f"overlayfs can't show this union as it is: {what}", where)


def kernel_stack(tree: Tree) -> KernelStack:
    """The layers of ``tree``. Raises ``MountError`` (``EOPNOTSUPP``) where overlayfs would show another tree."""
    layers = _directories(tree.resolver.layers)
    upper = tree.upper
    if upper is not None and not isinstance(upper, UpperDirectory):
        raise _cannot(upper.label, f"it takes an upper directory, and this is a {type(upper).__name__}")
    lowers = [layer for layer in layers if layer is not upper]
    if not lowers:
        raise _cannot(layers[0].path, "it takes a lower")
    if upper is None and len(lowers) == 1:
        raise _cannot(lowers[0].path, "it takes two layers where there is no upper")
    mounted = [entry.mountpoint for entry in mountinfo.mounts()]
    for layer in layers:
        _check_layer(layer, mounted)
    userxattr = _marks_are_users(layers, upper)
    on = not userxattr
    redirect_dir = tree.redirect_dir and on
    stack = KernelStack(tuple(lowers), upper, userxattr, redirect_dir, tree.metacopy and redirect_dir)
    stack.check_marks(redirect=userxattr, metacopy=not stack.metacopy)
    return stack


def _directories(layers: Sequence[Layer]) -> list[DirectoryLayer]:
    for layer in layers:
        if not isinstance(layer, DirectoryLayer):
            raise _cannot(layer.label, f"it takes directories, and this layer is a {type(layer).__name__}")
    return [layer for layer in layers if isinstance(layer, DirectoryLayer)]


def _check_layer(layer: DirectoryLayer, mounted: Sequence[str]) -> None:
    below = layer.path.rstrip("/") + "/"
    for parent, names in layer._hidden.items():
        for name in sorted(names):
            path = os.path.join(os.fsencode(below), parent.lstrip(b"/"), name)
            if os.path.lexists(path):
                raise _cannot(layer.path, f"{os.fsdecode(path)} in the layer is hidden")
    if layer.overrides:
        raise _cannot(layer.path, f"owners in this layer are kept in {owners.OVERRIDE}")
    if layer._loses_ids:
        raise _cannot(layer.path, "owners that the user namespace does not map are shown as root")
    for mountpoint in mounted:
        if mountpoint.startswith(below):
            raise _cannot(layer.path, f"a file system is mounted in the layer, at {mountpoint}")


def _marks_on_root(layer: DirectoryLayer) -> Iterator[bytes]:
    """Names on disk of the marks on the layer's root: ours, and those of an upper that overlayfs wrote."""
    fd = layer.fd(layer.root)
    for key in map(os.fsencode, os.listxattr(fd.n)):
        if whiteout.is_private(key) and whiteout.unescape(key) is None:
            yield key


def _marks_are_users(layers: Sequence[DirectoryLayer], upper: UpperDirectory | None) -> bool:
    """Whether marks are read and written under ``user.overlay.``: one mount knows one kind."""
    kinds = {layer: {key.startswith(whiteout.USER) for key in _marks_on_root(layer)} for layer in layers}
    if upper is not None:
        users = not upper.trusted
    elif owners.overflow_ids("/proc/self/uid_map"):
        users = True  # Only the initial user namespace has a trusted.*.
    else:
        users = {True} in kinds.values()
    for layer, found in kinds.items():
        if (not users) in found:
            ours, theirs = ("user", "trusted") if users else ("trusted", "user")
            raise _cannot(layer.path, f"this layer has marks in {theirs}.overlay, and only those in {ours} are read")
    return users


def _first_marked(layer: DirectoryLayer, redirect: bool, metacopy: bool) -> bytes | None:
    """The path in the layer of a directory with a redirect, or of a metacopy."""
    todo = [layer.root]
    while todo:
        d = todo.pop()
        for name, kind in layer.scan(d).items():
            if kind not in (DT_DIR, DT_REG):
                continue
            marks = layer.marks(d, name)
            if (metacopy and marks.metacopy) or (redirect and kind == DT_DIR and marks.redirect is not None):
                return d.path + b"/" + name
            if kind == DT_DIR:
                todo.append(d.child(name))
    return None
