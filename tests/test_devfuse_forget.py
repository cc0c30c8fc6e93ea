"""A node is let go while somebody looks for it: it stays one node."""

# ruff: noqa: B023  # The function that traces lives for its turn of the loop only.
from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from unionfs.union import serving
from unionfs.union.fs import UnionFS
from unionfs.union.node import DirNode, Node


@pytest.mark.parametrize("name", [b"file", b"sub"])
def test_who_looks_while_a_node_is_let_go(tmp_path: Path, name: bytes) -> None:
    """Wherever in the midst of it: what was found stays the node of its name."""
    for layer in ("top", "middle", "bottom"):
        (tmp_path / layer / "d/sub").mkdir(parents=True)
    (tmp_path / "middle/d/file").touch()
    with UnionFS(lower=[tmp_path / layer for layer in ("top", "middle", "bottom")]) as fs:
        tree = fs.tree
        d = tree.resolve(b"/d")
        assert isinstance(d, DirNode)
        late = 0
        for moment in range(1000):
            seen: list[Any] = []
            lines = 0

            def trace(frame: FrameType, event: str, _: Any) -> Any:
                nonlocal lines
                if frame.f_code.co_filename != serving.__file__:
                    return None
                lines += event == "line"
                if lines == moment and not seen:
                    seen.append(d.entries)
                    if look and d.entries is not None:
                        seen.append(d.entries.get(name))
                return trace

            look = moment % 2 == 0
            found = serving.look_up(tree, d, name)
            assert found is not None
            what = d if name == b"sub" else found[0]
            del found
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                serving.forget(tree, what)
            finally:
                sys.settrace(before)
            del what
            if not seen:
                break
            entries = seen[0]
            if not look and entries is not None:
                seen.append(entries.get(name))
            if isinstance(seen[-1], Node):
                late += 1
                again = serving.look_up(tree, d, name)
                assert again is not None
                assert again[0] is seen[-1]
                del again
        else:
            pytest.fail("never done")
        assert late > 5
