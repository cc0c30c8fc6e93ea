"""The documents are true: their examples run, their links lead somewhere, what they name exists.

A fenced block says what it is: ``python`` runs as a script and must print what the ``output`` block after it shows;
``pycon`` is a doctest; ``console`` runs in a shell, lines with ``$`` being commands and the others what they print.
In shown output, ``…`` stands for anything, and a line of it alone for any lines.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import unionfs
from tests.support import REPO
from unionfs.cli import COMMANDS, main
from unionfs.layer import whiteout

DOCUMENTS = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), REPO / "benchmarks" / "README.md"])
NAMES = [str(path.relative_to(REPO)) for path in DOCUMENTS]
KINDS = {"python", "output", "pycon", "console", "fstab", ""}


class Block(NamedTuple):
    """A fenced block; ``line`` is that of its first line of text."""

    kind: str
    line: int
    text: str


def text_of(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    kind: str | None = None
    start, lines = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if kind is None and line.startswith("```"):
            kind, start, lines = line[3:].strip(), number + 1, []
        elif kind is not None and line == "```":
            found.append(Block(kind, start, "".join(f"{line}\n" for line in lines)))
            kind = None
        elif kind is not None:
            lines.append(line)
    assert kind is None, f"line {start}: the block has no end"
    return found


def of_kind(kind: str) -> list[str]:
    return [name for name in NAMES if any(block.kind == kind for block in blocks(text_of(name)))]


def matches(shown: str, printed: str) -> bool:
    """Whether a program printed what a document shows."""
    lines = [re.escape(line).replace("…", ".*") for line in shown.splitlines()]
    pattern = "".join("(?:.*\n)*?" if line == ".*" else f"{line}\n" for line in lines)
    return re.fullmatch(pattern, printed if not printed or printed.endswith("\n") else f"{printed}\n") is not None


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """In which `unionfs` is ours: a package of others has a program of that name."""
    program = tmp_path / "bin" / "unionfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m unionfs.cli "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(REPO), "LC_ALL": "C.UTF-8"}


# Examples


@pytest.mark.parametrize("name", NAMES)
def test_blocks_say_what_they_are(name):
    odd = [block for block in blocks(text_of(name)) if block.kind not in KINDS]
    assert not odd


@pytest.mark.parametrize("name", of_kind("python"))
def test_python_examples_run_as_they_stand(name, tmp_path, environment):
    found = blocks(text_of(name))
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.kind != "python":
            continue
        script = tmp_path / "example.py"
        script.write_text(block.text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-W", "error", str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert after is not None
        assert after.kind == "output", f"{name}:{block.line}: what does it print?"
        # Shown as root sees it: without root, the root of a fresh upper has another owner than /etc.
        printed = done.stdout if os.geteuid() == 0 else done.stdout.removeprefix("C / owner\n")
        assert matches(after.text, printed), done.stdout


def test_the_readme_begins_with_ten_lines_of_python_that_run():
    first = next(block for block in blocks(text_of("README.md")) if block.kind == "python")
    assert len(first.text.splitlines()) == 10
    assert first.line < 40


@pytest.mark.parametrize("name", of_kind("pycon"))
def test_sessions_are_as_they_are_shown(name, scratch, monkeypatch):
    monkeypatch.chdir(scratch)
    session = "".join("\n" * 2 + block.text for block in blocks(text_of(name)) if block.kind == "pycon")
    said: list[str] = []
    example = doctest.DocTestParser().get_doctest(session, {}, name, name, 0)
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False).run(example, out=said.append)
    assert example.examples
    assert not said, "".join(said)


@pytest.mark.fuse
@pytest.mark.parametrize("name", of_kind("console"))
def test_commands_print_what_is_shown(name, scratch, environment):
    environment["UNIONFS_STORE"] = str(scratch / ".store")
    for block in blocks(text_of(name)):
        if block.kind == "console":
            run_console(block, scratch, environment)


def run_console(block: Block, directory: Path, environment: dict[str, str]) -> None:
    shown: list[tuple[str, str]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            shown.append((line[2:], ""))
        else:
            command, output = shown[-1]
            shown[-1] = command, f"{output}{line}\n"
    for command, output in shown:
        # Into a file: a daemon that the command leaves would hold a pipe open.
        with open(directory / ".output", "w+", encoding="utf-8") as file:
            done = subprocess.run(
                ["sh", "-euc", command],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=60,
            )
            file.seek(0)
            printed = file.read()
        assert done.returncode == 0, f"line {block.line}: {command}\n{printed}"
        assert matches(output, printed), f"line {block.line}: {command}\n{printed}"


def test_the_console_runner_can_fail(tmp_path, environment):
    run_console(Block("console", 1, "$ echo a; echo b\na\nb\n$ true\n"), tmp_path, environment)
    for text in ("$ echo a\nb\n", "$ echo a\n", "$ false\n", "$ true\na\n"):
        with pytest.raises(AssertionError):
            run_console(Block("console", 1, text), tmp_path, environment)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\n", "a\nb", True),
        ("a\n", "a\nb\n", False),
        ("a\n…\n", "a\nb\nc\n", True),
        ("a\n…\n", "a\n", True),
        ("a\n…\nc\n", "a\nb\nc\n", True),
        ("a\n…\nc\n", "a\nb\n", False),
        ("a…c\n", "abc\n", True),
        ("a.c\n", "abc\n", False),
    ],
)
def test_shown_and_printed(shown, printed, same):
    assert matches(shown, printed) is same


# Links


def heading_anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-") for heading in found}


def broken_links(text: str, directory: Path) -> Iterator[str]:
    """The relative links in ``text``, a document in ``directory``, that lead nowhere."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = directory / path if path else None
        if there is not None and not there.exists():
            yield target
        elif anchor:
            known = heading_anchors(text if there is None else there.read_text(encoding="utf-8"))
            if anchor not in known:
                yield target


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    assert not list(broken_links(text_of(name), (REPO / name).parent))


def test_the_link_checker_reports(tmp_path):
    (tmp_path / "there.md").write_text("# A `name`, here\n")
    text = "[a](there.md) [b](there.md#a-name-here) [c](#top) [d](https://example.org/x)\n# Top\n"
    assert not list(broken_links(text, tmp_path))
    text += "[e](gone.md) [f](there.md#no) [g](#bottom)"
    assert list(broken_links(text, tmp_path)) == ["gone.md", "there.md#no", "#bottom"]


# Names


COMMAND = re.compile(r"^ *(?:\$ )?unionfs ([a-z][a-z-]+)((?: [^\s`|]+)*)")


def code_of(text: str) -> str:
    """What stands in code spans, fenced blocks and indented blocks."""
    fenced = [block.text for block in blocks(text) if block.kind in ("", "console", "output", "fstab")]
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"^    .*$", rest, re.MULTILINE), *re.findall(r"`([^`\n]+)`", rest)])


def unknown_commands(text: str) -> Iterator[str]:
    """Subcommands and options of ``unionfs`` that a document names and that do not exist."""
    for line in code_of(text).splitlines():
        if found := COMMAND.match(line):
            name, rest = found.groups()
            if name not in COMMANDS:
                yield f"unionfs {name}"
                continue
            command = main.get_command(click.Context(main), name)
            assert command is not None
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            words = rest.partition(" -- ")[0].split()
            yield from (f"unionfs {name} {word}" for word in words if word[0] == "-" and word not in known)


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name):
    assert not list(unknown_commands(text_of(name)))


def test_the_command_checker_reports():
    text = "`unionfs mount M --lower D --depth 3`\n\n    unionfs fly away\n\n    unionfs try --keep D -- ls --color\n"
    assert sorted(unknown_commands(text)) == ["unionfs fly", "unionfs mount --depth"]


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_exist(name):
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE))
    named = set(re.findall(r"^ *(?:\$ )?make ([a-z]+)", code_of(text_of(name)), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("name", NAMES)
def test_methods_exist(name):
    text = text_of(name)
    missing = {word for word in re.findall(r"\bfs\.(\w+)\b", text) if not hasattr(unionfs.UnionFS, word)}
    missing -= {"tree", "closed"}
    missing |= {word for word in re.findall(r"`unionfs\.([A-Z]\w+)", text) if not hasattr(unionfs, word)}
    assert not missing - {"unionfs"}


def test_the_engines_side_of_the_tree_exists():
    section = text_of("docs/architecture.md").partition("## The engine's side of `Tree`")[2].partition("\n## ")[0]
    with unionfs.UnionFS([unionfs.MemoryLayer.from_dict({"f": ""})], unionfs.MemoryLayer()) as fs:
        handle = fs.tree.open(fs.tree.lookup(fs.tree.root, b"f"), os.O_RDONLY)
        for thing, name in re.findall(r"\b(tree|handle)\.(\w+)", section):
            assert hasattr(fs.tree if thing == "tree" else handle, name), f"{thing}.{name}"
        handle.close()


def test_the_tour_names_every_method():
    """What ``UnionFS`` can do stands in docs/api.md."""
    methods = {name for name in dir(unionfs.UnionFS) if not name.startswith("_")}
    named = set(re.findall(r"\w+", text_of("docs/api.md")))
    assert not methods - named - {"node", "tree"}


def test_the_format_names_every_mark():
    text = text_of("docs/format.md")
    marks = {
        value.decode()
        for name, value in vars(whiteout).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, bytes) and not value.endswith(b".")
    }
    marks.remove(whiteout.TRANSIT_OPAQUE.decode())
    assert f"`{whiteout.TRANSIT_OPAQUE.decode()}`" in text
    assert {"opaque", "unionfs.ino"} <= marks
    assert not {mark for mark in marks if f"`overlay.{mark}`" not in text}


# The list of modules in docs/architecture.md


def listed_modules(text: str) -> list[str]:
    """The modules that the tree under "## Rooms" lists, dotted, without the package's name."""
    section = text.partition("## Rooms")[2].partition("\n## ")[0]
    found = []
    rooms: list[str] = []
    for indent, name, slash in re.findall(r"^    ( +)(\w+)(/?)(?= )", section, re.MULTILINE):
        rooms = rooms[: len(indent) // 2 - 1]
        found.append(".".join([*rooms, name]))
        if slash:
            rooms.append(name)
    return found


def test_the_list_of_modules_is_complete():
    package = REPO / "unionfs"
    there = set()
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        there.add(".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts))
    listed = listed_modules(text_of("docs/architecture.md"))
    assert len(listed) == len(set(listed))
    assert set(listed) == there


def test_the_list_is_read_right():
    text = "## Rooms\n\n    pkg/\n      one    words\n      two/   more words\n        a    b c\n      three  d\n"
    text += "\n## More\n        x  y\n"
    assert listed_modules(text) == ["one", "two", "two.a", "three"]


# The package's own words


def test_the_package_shows_the_readme():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert project["readme"] == "README.md"
    assert unionfs.__version__ == project["version"]


def test_the_fstab_example_is_understood():
    from unionfs.mount.options import parse_options

    lines = [block.text for name in NAMES for block in blocks(text_of(name)) if block.kind == "fstab"]
    assert lines
    for line in "".join(lines).splitlines():
        _, mountpoint, kind, options, _, _ = line.split()
        found = parse_options(options)
        assert kind == "fuse.unionfs"
        assert mountpoint.startswith("/")
        assert found.lower
        assert found.upper


@pytest.mark.overlay
def test_the_kernel_mounts_as_documented(scratch):
    """The mount command of README.md and docs/format.md, with the names it has there."""
    for name in ("README.md", "docs/format.md"):
        line = next(line.strip() for line in text_of(name).splitlines() if line.startswith("    mount -t overlay "))
        top = scratch / name.replace("/", "-")
        for directory in ("app", "base/d", "upper", "merged"):
            (top / directory).mkdir(parents=True)
        (top / "base" / "d" / "f").write_text("f")
        with unionfs.UnionFS([top / "app", top / "base"], top / "upper") as fs:
            fs.rename("/d", "/e")
            fs.chmod("/e/f", 0o600)
        subprocess.run(shlex.split(line), cwd=top, check=True)
        try:
            assert (top / "merged/e/f").read_text() == "f"
            assert (top / "merged/e/f").stat().st_mode & 0o777 == 0o600
        finally:
            subprocess.run(["umount", str(top / "merged")], check=True)
