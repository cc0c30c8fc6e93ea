"""What a history tells: blame, bloat, squash, log, du, inspect."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator

import pytest

from unionfs.errors import NotFoundError, StoreError, UnionError
from unionfs.images import committing, squashing
from unionfs.images.blame import Touch
from unionfs.images.bloat import Hidden
from unionfs.images.container import Container
from unionfs.images.graph import Node, draw, log
from unionfs.images.publishing import Provenance
from unionfs.images.store import Store
from unionfs.images.usage import measure
from unionfs.store.collect import size_on_disk
from unionfs.store.records import LayerRecord

BIG = 1 << 16


@pytest.fixture
def store(scratch) -> Iterator[Store]:
    with Store(scratch / "store") as store:
        yield store


@pytest.fixture
def web(store, scratch) -> Iterator[Container]:
    """A container on an image of a few files."""
    source = scratch / "source"
    (source / "etc" / "deep").mkdir(parents=True)
    (source / "etc" / "hosts").write_bytes(b"h" * BIG)
    (source / "etc" / "deep" / "file").write_bytes(b"f" * BIG)
    (source / "etc" / "first").write_bytes(b"l" * BIG)
    os.link(source / "etc" / "first", source / "etc" / "second")
    store.import_(source, "base", author="bob")
    with store.create("base", "web", ["make", "it"]) as web:
        yield web


def told(touches: list[Touch]) -> list[tuple[str, set[str], str, str]]:
    """Kind, what, path and the message of each."""
    return [(touch.kind, set(touch.what), touch.path, touch.comment) for touch in touches]


def hidden(found: list[Hidden]) -> dict[str, tuple[str, int]]:
    return {each.path: (each.how, each.size) for each in found}


# blame


def test_blame_tells_who_touched_a_file_and_what_they_did(store, web):
    created = dt.datetime(2026, 11, 21, 7, tzinfo=dt.UTC)
    web.fs.write_text("/etc/hosts", "one")
    web.commit("two", author="ann", message="shorter", created=created)
    web.fs.write_text("/etc/other", "no matter")
    web.commit("three", message="another file")
    web.fs.chmod("/etc/hosts", 0o600)
    web.commit("four", message="private")
    web.fs.remove("/etc/hosts")
    web.commit("five", message="gone")
    touches = store.blame("five", "/etc/hosts")
    assert told(touches) == [
        ("deleted", set(), "/etc/hosts", "gone"),
        ("changed", {"mode"}, "/etc/hosts", "private"),
        ("changed", {"data", "times"}, "/etc/hosts", "shorter"),
        ("added", set(), "/etc/hosts", touches[-1].comment),
    ]
    assert [touch.names for touch in touches] == [("five:latest",), ("four:latest",), ("two:latest",), ("base:latest",)]
    assert (touches[2].author, touches[2].created, touches[2].created_by) == ("ann", created, "make it")
    assert touches[-1].author == "bob"


def test_blame_of_a_container_has_its_present_state(store, web):
    web.fs.write_text("/new", "x")
    assert [touch.kind for touch in store.blame("web", "new")] == ["added"]
    web.fs.remove("/new")
    assert [touch.kind for touch in store.blame("web", "/new")] == ["deleted", "added"]


def test_blame_goes_on_under_the_old_path_of_a_renamed_directory(store, web):
    web.fs.rename("/etc/deep", "/etc/moved")
    web.commit("two", message="moved")
    web.fs.rename("/etc", "/cfg")
    web.commit("three", message="moved again")
    web.fs.write_text("/cfg/moved/file", "new")
    web.commit("four", message="changed")
    found = store.blame("four", "/cfg/moved/file")
    assert [(touch.kind, touch.path, touch.renamed_from) for touch in found] == [
        ("changed", "/cfg/moved/file", None),
        ("added", "/cfg/moved/file", "/etc/moved/file"),
        ("added", "/etc/moved/file", "/etc/deep/file"),
        ("added", "/etc/deep/file", None),
    ]
    assert [touch.renamed_from for touch in store.blame("four", "/cfg/moved")] == ["/etc/moved", "/etc/deep", None]
    assert [touch.kind for touch in store.blame("four", "/etc/deep/file")] == ["deleted", "added"]


def test_blame_of_what_went_with_its_directory_and_came_back(store, web):
    web.fs.rmtree("/etc/deep")
    web.commit("two", message="gone")
    web.fs.makedirs("/etc/deep")
    web.commit("three", message="an empty one")
    web.fs.write_text("/etc/deep/file", "again")
    web.commit("four", message="back")
    assert [touch.comment for touch in store.blame("four", "/etc/deep/file")][:2] == ["back", "gone"]
    assert [touch.comment for touch in store.blame("four", "/etc/deep")][:2] == ["an empty one", "gone"]


def test_a_directory_is_not_touched_by_what_is_in_it(store, web):
    web.fs.write_text("/etc/hosts", "one")
    web.commit("two", message="a file in it")
    web.fs.chmod("/etc", 0o700)
    web.commit("three", message="itself")
    assert [touch.comment for touch in store.blame("three", "/etc")][:-1] == ["itself"]
    assert [touch.kind for touch in store.blame("three", "/")] == ["added"]


def test_blame_follows_links_on_the_way_and_not_at_the_end(store, web):
    web.fs.symlink("etc", "/conf")
    web.commit("two", message="a link")
    assert [touch.path for touch in store.blame("two", "/conf/hosts")] == ["/etc/hosts"]
    assert [touch.comment for touch in store.blame("two", "/conf")] == ["a link"]


def test_blame_of_what_never_was(store, web):
    with pytest.raises(NotFoundError, match="no layer ever had '/etc/nothing'"):
        store.blame("base", "/etc/nothing")


# bloat


def test_bloat_is_what_nobody_can_see_the_largest_first(store, web):
    assert store.bloat("base") == []
    web.fs.write_bytes("/etc/hosts", b"s" * (BIG // 4))
    web.commit("two")
    web.fs.remove("/etc/hosts")
    web.fs.rmtree("/etc/deep")
    web.commit("three")
    found = store.bloat("three")
    assert [(each.path, each.how, each.size, each.layer.depth, each.by and each.by.depth) for each in found] == [
        ("/etc/deep/file", "deleted", BIG, 0, 2),
        ("/etc/hosts", "overwritten", BIG, 0, 1),
        ("/etc/hosts", "deleted", BIG // 4, 1, 2),
    ]


def test_what_a_renamed_directory_or_a_metacopy_still_shows_is_no_bloat(store, web):
    web.fs.rename("/etc/deep", "/moved")
    web.fs.chmod("/etc/hosts", 0o600)
    web.commit("two")
    assert store.bloat("two") == []
    web.fs.remove("/moved/file")
    web.fs.remove("/etc/hosts")
    web.commit("three")
    assert {(each.path, each.how, each.size, each.by and each.by.depth) for each in store.bloat("three")} == {
        ("/etc/deep/file", "deleted", BIG, 2),
        ("/etc/hosts", "deleted", BIG, 2),
        ("/etc/hosts", "deleted", 0, 2),  # the metacopy
    }


def test_a_hard_link_is_bloat_when_its_last_name_is_hidden(store, web):
    web.fs.remove("/etc/first")
    web.commit("two")
    assert store.bloat("two") == []
    web.fs.remove("/etc/second")
    web.commit("three")
    found = hidden(store.bloat("three"))
    assert found.keys() == {"/etc/first", "/etc/second"}
    assert sum(size for _, size in found.values()) == BIG


def test_what_is_no_file_any_more_was_replaced(store, web):
    web.fs.remove("/etc/hosts")
    web.fs.makedirs("/etc/hosts")
    web.fs.rmtree("/etc/deep")
    web.fs.write_text("/etc/deep", "a file")
    web.commit("two")
    assert hidden(store.bloat("two")) == {"/etc/hosts": ("replaced", BIG), "/etc/deep/file": ("replaced", BIG)}


def test_a_directory_made_anew_hides_the_old_one(store, web):
    web.fs.rmtree("/etc")
    web.fs.makedirs("/etc/deep")
    web.fs.write_text("/etc/deep/file", "new")
    web.commit("two")
    found = hidden(store.bloat("two"))
    assert found.keys() == {"/etc/hosts", "/etc/deep/file", "/etc/first", "/etc/second"}
    assert found["/etc/hosts"] == ("deleted", BIG)


def test_whiteouts_that_hide_nothing_count(store, web):
    web.fs.write_text("/etc/new", "x")
    top = web.freeze("test", Provenance(created=""))
    web.fs.remove("/etc/new")
    assert hidden(store.bloat("web")) == {"/etc/new": ("deleted", 4096)}
    os.remove(f"{store.keep.places.diff(top)}/etc/new")
    assert hidden(store.bloat("web")) == {"/etc/new": ("whiteout", 0)}


# squash


def grown(web: Container) -> None:
    """Four images: written, renamed, linked, deleted in."""
    web.fs.write_text("/etc/hosts", "one")
    web.commit("two", message="shorter")
    web.fs.rename("/etc/deep", "/etc/moved")
    web.fs.write_text("/etc/moved/more", "m")
    web.commit("three", message="moved", changes=["ENV A=1"])
    web.fs.chmod("/etc/first", 0o600)
    web.fs.link("/etc/second", "/etc/third")
    web.fs.setxattr("/etc/moved", b"user.a", b"b")
    web.commit("four", message="metadata")
    web.fs.remove("/etc/moved/file")
    web.commit("five", message="less")


@pytest.mark.parametrize(("base", "layers"), [(None, 1), ("base", 2), ("three", 4), ("five~1", 5)])
def test_a_squashed_image_shows_the_same_tree_in_fewer_layers(store, web, base, layers):
    grown(web)
    before = store.image("five")
    image = store.squash("five", "small", base=base, message="smaller", author="ann")
    assert image.names == ["small:latest"]
    assert len(image.layers) == layers
    assert list(store.diff("five", image)) == []
    kept = 0 if base is None else len(store.image(base).layers) if "~" not in base else 4
    assert image.config.diff_ids[:kept] == before.config.diff_ids[:kept]
    assert (image.config.author, image.config.run.env) == ("ann", ("A=1",))
    told = [(entry.comment, entry.empty_layer) for entry in image.config.history]
    was = [(entry.comment, i >= kept) for i, entry in enumerate(before.config.history)]
    assert told == [*was, ("smaller", False)]
    assert all(each.layer.depth < kept for each in store.bloat(image))
    assert [problem for problem in store.fsck() if not problem.note] == []


def test_squash_drops_what_nobody_can_see(store, web):
    grown(web)
    image = store.squash("five")
    assert image.names == []
    assert store.bloat(image) == []
    assert image.size < store.image("five").size - 2 * BIG + 3 * 4096


def test_squash_of_nothing_is_the_image_itself(store, web):
    image = store.squash("base", "same", base="base")
    assert image.id == store.image("base").id
    assert image.names == ["base:latest", "same:latest"]


def test_layers_that_undo_each_other_squash_to_none(store, web):
    web.fs.write_text("/new", "x")
    web.commit("two")
    web.fs.remove("/new")
    web.commit("three")
    image = store.squash("three", base="base")
    assert [layer.id for layer in image.layers] == [layer.id for layer in store.image("base").layers]
    assert [entry.empty_layer for entry in image.config.history] == [False, True, True, True]


def test_squash_needs_a_base_that_the_image_stands_on(store, web, scratch):
    store.import_(scratch / "source" / "etc", "other")
    for base, words in (("other", "does not stand on 'other'"), ("web", "is a container"), ("none", "no image")):
        with pytest.raises(UnionError, match=words):
            store.squash("base", "new", base=base)
    with pytest.raises(NotFoundError):
        store.image("new")


def damaged(clean):
    """A way to make a clean layer that is wrong in one byte, with all its metadata right."""

    def write(keep, staging, *rest):
        clean(keep, staging, *rest)
        path = f"{staging}/layer/diff/etc/hosts"
        st = os.stat(path)
        with open(path, "r+b") as file:
            file.write(b"O")
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))

    return write


def test_squash_publishes_nothing_that_it_can_not_prove(store, web, monkeypatch):
    grown(web)
    before = {layer.id for layer in store.keep.records.layers()}
    monkeypatch.setattr(squashing, "write_clean", damaged(committing.write_clean))
    with pytest.raises(StoreError, match="would not show the same tree: C /etc/hosts"):
        store.squash("five", "small")
    monkeypatch.setattr(squashing, "compare", lambda *_: iter(()))
    with (
        store.open("five") as five,
        store.open("base") as base,
        pytest.raises(StoreError, match="would not show the same tree: /etc"),
    ):
        squashing._prove(five.tree, base.tree, None)
    assert {layer.id for layer in store.keep.records.layers()} == before
    assert os.listdir(store.keep.places.tmp) == []
    with pytest.raises(NotFoundError):
        store.image("small")


# log


def test_log_has_each_layer_before_what_it_stands_on_and_who_points_there(store, web):
    grown(web)
    with web.fork("other") as other:
        other.fs.write_text("/other", "o")
        other.commit("branch", message="another branch")
    nodes = store.log()
    at = {node.layer.id: i for i, node in enumerate(nodes)}
    assert all(node.layer.parent is None or at[node.layer.parent] > at[node.layer.id] for node in nodes)
    heads = {node.layer.comment: node.heads for node in nodes}
    assert heads["less"] == ("five:latest", "web")
    assert "branch:latest" in heads["another branch"]
    assert [node.layer.comment for node in nodes][-5:-1] == ["less", "metadata", "moved", "shorter"]


def drawn(parents: dict[str, str | None]) -> list[str]:
    nodes = [Node(LayerRecord(key, parent, 0)) for key, parent in parents.items()]
    return [row.graph + (f" {row.node.layer.id}" if row.node is not None else "") for row in draw(nodes)]


def test_branches_are_drawn_side_by_side_and_joined():
    assert drawn({"c": "a", "b": "a", "a": None}) == ["* c", "| * b", "|/", "* a"]
    assert drawn({"d": "a", "c": "b", "b": "a", "a": None}) == ["* d", "| * c", "| * b", "|/", "* a"]


def test_a_line_that_ends_or_joins_moves_those_on_its_right():
    assert drawn({"x": None, "c": "a", "a": None}) == ["* x", "* c", "* a"]
    assert drawn({"e": "a", "d": "b", "x": "a", "b": None, "a": None}) == [
        "* e",
        "| * d",
        "| | * x",
        "|_|/",
        "| * b",
        "* a",
    ]
    assert drawn({"c": "b", "d": "y", "b": None, "y": None}) == ["* c", "| * d", "* | b", " /", "* y"]
    assert drawn({"e": "a", "d": "a", "z": "y", "a": None, "y": None}) == [
        "* e",
        "| * d",
        "|/",
        "| * z",
        "* | a",
        " /",
        "* y",
    ]


def test_further_lines_stand_beside_the_columns():
    nodes = [Node(LayerRecord(key, parent, 0)) for key, parent in (("b", "a"), ("x", None), ("a", None))]
    assert [row.below for row in draw(nodes) if row.node] == ["|", "|", ""]


def test_thousands_of_layers_are_ordered_and_drawn_at_once(store):
    with store.keep.database.transaction("test"):
        for i in range(3000):
            parent = None if i == 0 else f"{i - 1:04}" if i % 10 else f"{i - 10:04}"
            store.keep.records.add_layer(LayerRecord(f"{i:04}", parent, i, created="2026-11-21T07:00:00Z"))
    nodes = log(store)
    assert nodes[0].layer.id == "2999"
    rows = list(draw(nodes))
    assert sum(row.node is not None for row in rows) == 3000


# du


def test_du_tells_own_and_shared_bytes(store, web):
    web.fs.write_bytes("/own", b"o" * BIG)
    web.commit("two")
    web.fs.write_bytes("/upper", b"u" * BIG)
    found, totals = measure(store)
    usage = {(each.kind, each.name): each for each in found}
    base, two, mine = usage["image", "base:latest"], usage["image", "two:latest"], usage["container", "web"]
    assert all(each.size == each.own + each.shared for each in found)
    assert (base.own, base.size) == (0, store.image("base").size)
    assert (two.own, two.size) == (0, store.image("two").size)
    assert mine.own == size_on_disk(store.inspect("web")["Upper"]) >= BIG
    assert two.active
    assert not base.active
    web.remove()
    store.remove_image("base")
    found, _ = measure(store)
    after = {each.name: each for each in found if each.kind == "image"}
    assert after["two:latest"].own == after["two:latest"].size == two.size
    assert {total.kind: total.count for total in totals} == {"image": 2, "container": 1, "layer": 2, "snapshot": 0}
    assert store.gc().layers == []


def test_own_bytes_are_what_removing_frees(store, web):
    web.fs.write_bytes("/own", b"o" * BIG)
    web.commit("two")
    web.remove()
    own = next(each.own for each in store.du() if each.name == "two:latest")
    before = size_on_disk(store.keep.places.layers)
    store.remove_image("two")
    assert BIG <= own <= before - size_on_disk(store.keep.places.layers) <= own + 5 * 4096


def test_du_measures_snapshots_once(store, web):
    web.fs.write_bytes("/own", b"o" * BIG)
    web.fork("other").close()
    assert web.history()[0].size is None
    usage = {each.kind: each for each in store.du()}
    assert usage["snapshot"].size == web.history()[0].size == size_on_disk(store.keep.places.diff(web.history()[0].id))
    assert usage["snapshot"].own == 0


# inspect


def test_inspect_tells_all_of_an_image(store, web):
    grown(web)
    store.tag("five", "example.org/team/five:1")
    found = store.inspect("five")
    image = store.image("five")
    assert (found["Id"], found["Digest"], found["Parent"]) == (image.id, image.digest, store.image("four").id)
    assert found["RepoTags"] == ["example.org/team/five:1", "five:latest"]
    assert found["RepoDigests"] == [f"example.org/team/five@{image.digest}", f"five@{image.digest}"]
    assert found["RootFS"]["Layers"] == list(image.config.diff_ids)
    assert found["Config"]["Env"] == ["A=1"]
    assert (found["Comment"], found["Size"], len(found["History"])) == ("less", image.size, 5)
    assert [layer["DiffId"] for layer in found["Layers"]] == found["RootFS"]["Layers"]
    assert all(os.path.isdir(layer["Directory"]) for layer in found["Layers"])
    assert found["Containers"] == ["web"]


def test_inspect_tells_all_of_a_container_and_a_layer(store, web):
    grown(web)
    found = store.inspect("web")
    assert (found["Type"], found["Name"], found["Command"]) == ("container", "web", ["make", "it"])
    assert found["ImageNames"] == ["five:latest"]
    assert found["Status"] == f"open in pid {os.getpid()}"
    assert os.path.isdir(found["Upper"])
    assert [point["Why"] for point in found["Points"]] == ["commit"] * 4
    layer = store.inspect(found["Layers"][-1]["Id"])
    assert (layer["Type"], layer["Depth"], layer["Comment"]) == ("layer", 4, "less")
    assert layer["Changes"] == {"added": 0, "changed": 0, "deleted": 1}
    assert os.path.isfile(layer["ChangesFile"])
    assert store.inspect("five~1")["Id"] == layer["Parent"]
    with pytest.raises(NotFoundError):
        store.inspect("nothing")
