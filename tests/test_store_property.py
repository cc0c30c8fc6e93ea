"""The whole store against a model: dictionaries that say what every image, container and point has to show."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests import support
from unionfs import InUseError, Store, UnionFS

EXAMPLES = int(os.environ.get("UNIONFS_STORE_CASES", "40"))
STEPS = 40

NAMES = ("a", "b", "c")
TAGS = ("one:latest", "two:latest", "three:latest")
CALLED = ("red", "green", "blue")


@attrs.define(eq=False)
class Inode:
    """An object of the model; several paths may lead to one that is no directory."""

    kind: str
    data: str = ""
    mode: int = 0o755

    def facts(self) -> tuple[str, str, int]:
        return (self.kind, self.data, self.mode)


Tree = dict[str, Inode]


def copied(tree: Tree) -> Tree:
    """The same objects under the same names, and hard links among them."""
    twins: dict[int, Inode] = {}
    return {path: twins.setdefault(id(inode), attrs.evolve(inode)) for path, inode in tree.items()}


def above(path: str) -> str:
    return path.rpartition("/")[0]


def shown(fs: UnionFS) -> dict[str, tuple[str, str, int]]:
    """What a union shows, in the model's terms."""
    found = {}
    for at, names, files in fs.walk("/"):
        for name in (*names, *files):
            path = f"{at.rstrip('/')}/{name}"
            mode = fs.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                found[path] = ("link", fs.readlink(path), 0o777)
            elif stat.S_ISDIR(mode):
                found[path] = ("directory", "", stat.S_IMODE(mode))
            else:
                found[path] = ("file", fs.read_text(path), stat.S_IMODE(mode))
    return found


def facts(tree: Tree) -> dict[str, tuple[str, str, int]]:
    return {path: inode.facts() for path, inode in tree.items()}


def top(trees: list[Tree]) -> Tree:
    """What an image shows; one without layers is empty."""
    return trees[0] if trees else {}


def model_diff(new: Tree, old: Tree) -> set[tuple[str, str]]:
    """Paths and what happened to them."""
    found = set()
    for path in new.keys() | old.keys():
        if path not in old:
            found.add((path, "added"))
        elif path not in new:
            parent = above(path)
            if not parent or (parent in new and new[parent].kind == "directory"):
                found.add((path, "deleted"))
        elif new[path].facts() != old[path].facts():
            found.add((path, "changed"))
    return found


@attrs.define
class Box:
    """A container of the model."""

    tree: Tree
    image: str | None
    points: list[tuple[str, Tree]] = attrs.field(factory=list)


index = st.integers(0, 11)
contents = st.sampled_from(["", "x", "yy", "x" * 5000])


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.top = support.make_scratch()
        self.store = Store(self.top / "store")
        self.tags: dict[str, str] = {}
        self.images: dict[str, list[Tree]] = {}
        """What each layer of an image shows on those below, the topmost first."""
        self.boxes: dict[str, Box] = {}
        self.open: dict[str, Any] = {}
        """Containers, by name, that this process has open."""
        self.readers: list[tuple[UnionFS, Tree]] = []
        self.imports = 0

    def teardown(self) -> None:
        try:
            for name in list(self.boxes):
                self.same(name)
            for key in self.images:
                with self.store.image(key).open() as there:
                    assert shown(there) == facts(top(self.images[key]))
            self.collect()
        finally:
            for fs, _ in self.readers:
                fs.close()
            for container in self.open.values():
                container.close()
            self.store.close()
            support.remove_scratch(self.top)

    # What is chosen from

    def box(self, at: int) -> str | None:
        names = sorted(self.boxes)
        return names[at % len(names)] if names else None

    def tag_of(self, at: int) -> str | None:
        names = sorted(self.tags)
        return names[at % len(names)] if names else None

    def container(self, name: str) -> Any:
        """The one object for it."""
        if name not in self.open:
            self.open[name] = self.store.container(name)
        return self.open[name]

    def place(self, tree: Tree, at: int, name: str) -> str:
        """A path in one of the directories that there are."""
        directories = ["", *sorted(path for path, inode in tree.items() if inode.kind == "directory")]
        directories = [path for path in directories if path.count("/") < 3]
        return f"{directories[at % len(directories)]}/{name}"

    def existing(self, tree: Tree, at: int) -> str | None:
        paths = sorted(tree)
        return paths[at % len(paths)] if paths else None

    def same(self, name: str) -> None:
        assert shown(self.container(name).fs) == facts(self.boxes[name].tree)

    # Images

    @initialize()
    def begin(self) -> None:
        self.import_("one:latest", {"/a": Inode("directory"), "/a/b": Inode("file", "lower", 0o644)})

    def import_(self, tag: str, tree: Tree) -> None:
        self.imports += 1
        source = self.top / f"source{self.imports}"
        source.mkdir()
        source.chmod(0o755)
        for path, inode in sorted(tree.items()):
            at = f"{source}{path}"
            if inode.kind == "directory":
                os.mkdir(at)
                os.chmod(at, inode.mode)
            else:
                Path(at).write_text(inode.data)
                os.chmod(at, inode.mode)
        image = self.store.import_(source, tag)
        shutil.rmtree(source)
        self.tags[tag] = image.id
        self.images[image.id] = [tree]

    @rule(tag=st.sampled_from(TAGS), names=st.sets(st.sampled_from(NAMES)), data=contents)
    def imports_(self, tag: str, names: set[str], data: str) -> None:
        tree = {f"/{name}": Inode("directory") for name in names}
        tree |= {f"/{name}/b": Inode("file", data, 0o600) for name in names}
        self.import_(tag, tree)

    @rule(at=index, tag=st.sampled_from(TAGS))
    def tag(self, at: int, tag: str) -> None:
        if (known := self.tag_of(at)) is not None:
            self.store.tag(known, tag)
            self.tags[tag] = self.tags[known]

    @rule(at=index, force=st.booleans())
    def rmi(self, at: int, force: bool) -> None:
        if (tag := self.tag_of(at)) is None:
            return
        key = self.tags[tag]
        last = list(self.tags.values()).count(key) == 1
        used = any(box.image == key for box in self.boxes.values())
        if last and used and not force:
            with pytest.raises(InUseError):
                self.store.remove_image(tag)
            return
        self.store.remove_image(tag, force=force)
        del self.tags[tag]
        if last and not used:
            del self.images[key]

    @rule(at=index, tag=st.sampled_from(TAGS), keep=st.integers(0, 2))
    def squash(self, at: int, tag: str, keep: int) -> None:
        if (known := self.tag_of(at)) is None:
            return
        key = self.tags[known]
        trees = self.images[key]
        kept = trees[len(trees) - min(keep, len(trees)) :]
        image = self.store.squash(known, tag, base=f"{known}~{len(trees) - len(kept)}" if kept else None)
        layers = len(image.layers)
        assert layers - len(kept) in (0, 1)
        self.tags[tag] = image.id
        self.images[image.id] = [top(trees), *kept] if layers > len(kept) else kept
        if layers == len(kept):
            assert facts(top(trees)) == facts(top(kept))
        with image.open() as fs:
            assert shown(fs) == facts(top(trees))

    # Containers

    @rule(at=index, name=st.sampled_from(CALLED), back=st.integers(0, 2), by_id=st.booleans())
    def create(self, at: int, name: str, back: int, by_id: bool) -> None:
        if (tag := self.tag_of(at)) is None:
            return
        key = self.tags[tag]
        trees = self.images[key]
        back = min(back, len(trees))
        ref = f"{key[:30] if by_id else tag}~{back}" if back else tag
        if name in self.boxes:
            with pytest.raises(InUseError):
                self.store.create(ref, name)
            return
        self.store.create(ref, name)
        self.boxes[name] = Box(copied(trees[back]) if back < len(trees) else {}, key)

    @rule(at=index)
    def rm(self, at: int) -> None:
        if (name := self.box(at)) is None:
            return
        self.container(name).remove()
        del self.open[name], self.boxes[name]

    @rule(at=index, name=st.sampled_from(CALLED))
    def rename(self, at: int, name: str) -> None:
        if (old := self.box(at)) is None:
            return
        if name in self.boxes and name != old:
            with pytest.raises(InUseError):
                self.container(old).rename(name)
            return
        container = self.container(old)
        container.rename(name)
        self.boxes[name] = self.boxes.pop(old)
        self.open[name] = self.open.pop(old)

    @rule(at=index, tag=st.none() | st.sampled_from(TAGS))
    def commit(self, at: int, tag: str | None) -> None:
        if (name := self.box(at)) is None:
            return
        box = self.boxes[name]
        known = self.trees_by_layer()
        image = self.container(name).commit(tag, message=f"of {name}")
        layers = [layer.id for layer in image.layers]
        if layers and layers[0] not in known:
            known[layers[0]] = copied(box.tree)
        # The layers below are images' already, and their trees known.
        trees = [known[layer] for layer in layers]
        assert facts(top(trees)) == facts(box.tree)
        self.images[image.id] = trees
        box.image = image.id
        self.note(name)
        if tag is not None:
            self.tags[tag] = image.id

    def trees_by_layer(self) -> dict[str, Tree]:
        return {
            layer.id: tree
            for key, trees in self.images.items()
            for layer, tree in zip(self.store.image(key).layers, trees, strict=True)
        }

    def note(self, name: str) -> None:
        """The state that the container was last frozen in is one to go back to."""
        points = self.container(name).points()
        box = self.boxes[name]
        if points and points[0].layer == (self.container(name).record.layer):
            box.points.append((points[0].layer, copied(box.tree)))

    @rule(at=index, name=st.sampled_from(CALLED))
    def fork(self, at: int, name: str) -> None:
        if (old := self.box(at)) is None:
            return
        if name in self.boxes:
            with pytest.raises(InUseError):
                self.container(old).fork(name)
            return
        self.container(old).fork(name)
        self.boxes[name] = Box(copied(self.boxes[old].tree), self.boxes[old].image)
        self.note(old)

    @rule(at=index, to=index, back=st.integers(0, 1))
    def rollback_to_image(self, at: int, to: int, back: int) -> None:
        name, tag = self.box(at), self.tag_of(to)
        if name is None or tag is None:
            return
        trees = self.images[self.tags[tag]]
        back = min(back, len(trees))
        box = self.boxes[name]
        self.container(name).rollback(f"{tag}~{back}" if back else tag)
        box.tree = copied(trees[back]) if back < len(trees) else {}
        box.image = self.tags[tag]
        self.same(name)

    @rule(at=index, to=index)
    def rollback_to_point(self, at: int, to: int) -> None:
        if (name := self.box(at)) is None or not (points := self.boxes[name].points):
            return
        layer, tree = points[to % len(points)]
        self.container(name).rollback(layer)
        self.boxes[name].tree = copied(tree)
        self.same(name)

    # In containers

    @rule(at=index, where=index, name=st.sampled_from(NAMES), data=contents, again=st.booleans())
    def write(self, at: int, where: int, name: str, data: str, again: bool) -> None:
        if (box := self.box(at)) is None:
            return
        tree, fs = self.boxes[box].tree, self.container(box).fs
        path = self.place(tree, where, name)
        inode = tree.get(path)
        if inode is None:
            fs.write_text(path, data)
            fs.chmod(path, 0o644)
            tree[path] = Inode("file", data, 0o644)
        elif inode.kind == "file":
            inode.data = inode.data if again else data
            fs.write_text(path, inode.data)

    @rule(at=index, where=index, name=st.sampled_from(NAMES))
    def mkdir(self, at: int, where: int, name: str) -> None:
        if (box := self.box(at)) is None:
            return
        tree, fs = self.boxes[box].tree, self.container(box).fs
        path = self.place(tree, where, name)
        if path not in tree:
            fs.mkdir(path)
            fs.chmod(path, 0o755)
            tree[path] = Inode("directory")

    @rule(at=index, what=index)
    def remove(self, at: int, what: int) -> None:
        if (box := self.box(at)) is None or (path := self.existing(self.boxes[box].tree, what)) is None:
            return
        tree, fs = self.boxes[box].tree, self.container(box).fs
        if tree[path].kind == "directory":
            fs.rmtree(path)
        else:
            fs.remove(path)
        for gone in [each for each in tree if each == path or each.startswith(f"{path}/")]:
            del tree[gone]

    @rule(at=index, what=index, where=index, name=st.sampled_from(NAMES))
    def move(self, at: int, what: int, where: int, name: str) -> None:
        if (box := self.box(at)) is None or (path := self.existing(self.boxes[box].tree, what)) is None:
            return
        tree, fs = self.boxes[box].tree, self.container(box).fs
        target = self.place(tree, where, name)
        other = tree.get(target)
        if target == path or target.startswith(f"{path}/") or other is tree[path]:
            return
        if other is not None and (other.kind == "directory" or tree[path].kind == "directory"):
            return
        fs.rename(path, target)
        for old in [each for each in tree if each == path or each.startswith(f"{path}/")]:
            tree[target + old[len(path) :]] = tree.pop(old)

    @rule(at=index, what=index, mode=st.sampled_from([0o700, 0o750, 0o755]))
    def chmod(self, at: int, what: int, mode: int) -> None:
        if (box := self.box(at)) is None or (path := self.existing(self.boxes[box].tree, what)) is None:
            return
        inode = self.boxes[box].tree[path]
        if inode.kind != "link":
            self.container(box).fs.chmod(path, mode)
            inode.mode = mode

    @rule(at=index, where=index, name=st.sampled_from(NAMES), to=st.sampled_from(NAMES))
    def symlink(self, at: int, where: int, name: str, to: str) -> None:
        if (box := self.box(at)) is None:
            return
        tree, fs = self.boxes[box].tree, self.container(box).fs
        path = self.place(tree, where, name)
        if path not in tree:
            fs.symlink(to, path)
            tree[path] = Inode("link", to, 0o777)

    @rule(at=index, what=index, where=index, name=st.sampled_from(NAMES))
    def link(self, at: int, what: int, where: int, name: str) -> None:
        if (box := self.box(at)) is None or (path := self.existing(self.boxes[box].tree, what)) is None:
            return
        tree, fs = self.boxes[box].tree, self.container(box).fs
        target = self.place(tree, where, name)
        if target not in tree and tree[path].kind == "file":
            fs.link(path, target)
            tree[target] = tree[path]

    # Questions

    @rule(at=index)
    def look(self, at: int) -> None:
        if (name := self.box(at)) is not None:
            self.same(name)

    @rule(a=index, b=index)
    def diff(self, a: int, b: int) -> None:
        points: list[tuple[str, Tree]] = [(tag, top(self.images[key])) for tag, key in sorted(self.tags.items())]
        points += [(name, box.tree) for name, box in sorted(self.boxes.items())]
        if not points:
            return
        (old, before), (new, after) = points[a % len(points)], points[b % len(points)]
        found = {
            (change.path, change.kind)
            for change in self.store.diff(old, new)
            if change.path != "/" and not (change.kind == "changed" and change.what == {"times"})
        }
        assert found == model_diff(after, before)

    @rule(at=index)
    def read_on(self, at: int) -> None:
        if (tag := self.tag_of(at)) is not None and len(self.readers) < 3:
            self.readers.append((self.store.open(tag), copied(top(self.images[self.tags[tag]]))))

    @precondition(lambda self: self.readers)
    @rule()
    def read_to_the_end(self) -> None:
        fs, tree = self.readers.pop(0)
        with fs:
            assert shown(fs) == facts(tree)

    # Order

    @rule(at=index)
    def close(self, at: int) -> None:
        if (name := self.box(at)) is not None and name in self.open:
            self.open.pop(name).close()

    @precondition(lambda self: not self.readers)
    @rule()
    def reopen(self) -> None:
        for container in self.open.values():
            container.close()
        self.open.clear()
        self.store.close()
        self.store = Store(self.top / "store")

    @rule()
    def gc(self) -> None:
        self.collect()

    def collect(self) -> None:
        self.store.gc()
        living = {*self.tags.values(), *(box.image for box in self.boxes.values())}
        self.images = {key: model for key, model in self.images.items() if key in living}
        assert {image.id for image in self.store.images()} == set(self.images)
        keep = self.store.keep
        rows = {layer.id: layer for layer in keep.records.layers()}
        assert set(os.listdir(keep.places.layers)) == set(rows)
        # What is reachable, told the plain way.
        todo = [layer.id for image in self.store.images() for layer in image.layers]
        for container in self.store.containers():
            todo += [layer.id for layer in container.history()]
            todo += [point.layer for point in container.points()]
        todo += [str(row[0]) for row in keep.database.rows("SELECT layer FROM leases")]
        reachable: set[str] = set()
        while todo:
            layer = rows[todo.pop()]
            if layer.id not in reachable:
                reachable.add(layer.id)
                todo += [other for other in (layer.parent, layer.same_as) if other is not None]
        assert reachable == set(rows)
        assert set(os.listdir(keep.places.containers)) == {container.id for container in self.store.containers()}
        assert os.listdir(keep.places.tmp) == os.listdir(keep.places.trash) == []
        assert len(os.listdir(keep.places.leases)) == len(self.readers)
        assert len(os.listdir(keep.places.blobs)) == len({*self.images, *(i.digest for i in self.store.images())})

    @invariant()
    def names_are_right(self) -> None:
        assert dict(self.store.keep.records.tags()) == self.tags
        found = {container.name: container for container in self.store.containers()}
        assert set(found) == set(self.boxes)
        for name, box in self.boxes.items():
            image = found[name].image
            assert (None if image is None else image.id) == box.image
        assert {image.id for image in self.store.images()} >= set(self.images)


@pytest.mark.slow
@pytest.mark.timeout(0 if EXAMPLES > 40 else 180)
def test_the_store_is_as_its_model() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
