"""Histories at random, and what is told of them, against plain ways to know it."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.histories import plain_changes, walk
from unionfs.images.publishing import Provenance
from unionfs.images.stacks import Stack
from unionfs.images.store import Store
from unionfs.testing.operations import Operations
from unionfs.testing.oracle import outcome
from unionfs.testing.surfaces import HostSurface, TreeSurface
from unionfs.union.node import DirNode, FileNode

IMAGES = ["i0", "i1", "i2", "i3", "i4", "i5"]


@pytest.fixture(params=range(6))
def rng(request) -> Random:
    return Random(request.param)


@pytest.fixture
def store(scratch, rng):
    """A store with images on each other, made by random operations in one container."""
    plain = scratch / "plain"
    plain.mkdir()
    host = HostSurface(str(plain))
    operations = Operations(rng, host, root=os.geteuid() == 0, remounts=False)
    work(operations, 60, host)
    with Store(scratch / "store") as store:
        store.import_(plain, "i0")
        with store.create("i0", "web") as web:
            for name in IMAGES[1:]:
                work(operations, rng.randrange(1, 60), host, TreeSurface(web.fs.tree))
                if rng.random() < 0.3:
                    web.freeze("test", Provenance(created=""))
                    work(operations, 5, host, TreeSurface(web.fs.tree))
                web.commit(name)
            work(operations, 20, host, TreeSurface(web.fs.tree))
        yield store


def work(operations: Operations, steps: int, *surfaces: Any) -> None:
    for _ in range(steps):
        operation = operations.next()
        for surface in surfaces:
            outcome(surface, operation)
    for surface in surfaces:
        for slot in list(surface.files):
            surface.close(slot)


def test_squash_leaves_the_tree_and_takes_the_bloat(store, rng):
    for base in (None, *rng.sample(IMAGES, 2)):
        image = store.squash("i5", base=base)
        assert list(store.diff("i5", image)) == []
        if base is None:
            assert store.bloat(image) == []
    assert store.fsck() == []


@pytest.mark.parametrize("ref", ["i5", "web"])
def test_bloat_is_what_no_file_of_the_tree_shows(store, ref):
    with Stack(store.keep, store.frozen(ref)) as stack:
        tree = stack.tree()
        seen = set()
        todo = [tree.root]
        while todo:
            for name, _, _ in tree.listdir(d := todo.pop()):
                n = tree.lookup(d, name)
                if isinstance(n, DirNode):
                    todo.append(n)
                elif isinstance(n, FileNode) and n.kind == 8:
                    file = tree.open_data(n)
                    for st in (file.stat(), n.home.layer.stat(n.home, n.lname)):  # attributes take room too
                        seen.add((st.st_dev, st.st_ino))
                    file.close()
        hidden = set()
        for layer in stack.records:
            for path in Path(store.keep.places.diff(layer.id)).rglob("*"):
                st = path.lstat()
                if path.is_file() and not path.is_symlink() and st.st_blocks and (st.st_dev, st.st_ino) not in seen:
                    hidden.add((layer.id, st.st_ino, st.st_blocks * 512))
    found = [each for each in store.bloat(ref) if each.size]
    assert {
        (each.layer.id, os.lstat(store.keep.places.diff(each.layer.id) + each.path).st_ino, each.size) for each in found
    } == hidden
    assert len(found) == len(hidden)
    assert all(each.by is not None and each.by.depth > each.layer.depth for each in found)


def test_blame_names_the_layers_where_a_path_differs(store, rng):
    walks = []
    for name in IMAGES:
        with store.open(name) as fs:
            walks.append(walk(fs.tree))
    layers = store.image("i5").layers[::-1]
    at = {image: len(store.image(image).layers) for image in IMAGES}
    for path in rng.sample(sorted(walks[-1]), min(12, len(walks[-1]))):
        if path == "/":
            continue
        wanted = []
        for i in range(len(IMAGES) - 1, 0, -1):
            if at[IMAGES[i]] == at[IMAGES[i - 1]]:
                continue
            for changed, kind, what in plain_changes(walks[i], walks[i - 1]):
                if changed == path:
                    wanted.append((layers[at[IMAGES[i]] - 1].id, kind, what))
            if wanted and wanted[-1][1] == "added":
                break
        else:
            wanted.append((layers[0].id, "added", frozenset()))
        found = []
        for touch in store.blame("i5", path):
            found.append((touch.layer.id, touch.kind, touch.what))
            if touch.renamed_from is not None:
                wanted = wanted[: len(found)]  # Below it goes on under another path.
                break
        assert found[: len(wanted)] == wanted, path
