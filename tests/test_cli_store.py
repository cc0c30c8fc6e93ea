"""Images and containers, by the words of the command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import click
import pytest

from tests import support
from tests.storecli import HOSTILE, call, change, fails, line, lines, loaded, ok
from unionfs.cli import COMMANDS, main

STORE_WORDS = [
    "images", "create", "ps", "diff", "commit", "history", "tag", "rmi", "rm", "rename", "cp", "inspect", "fork",
    "rollback", "log", "blame", "bloat", "squash", "gc", "du", "fsck", "import",
]  # fmt: skip


@pytest.fixture
def top(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a tree, and beside it a store that has it as `base`."""
    monkeypatch.setenv("UNIONFS_STORE", str(scratch / "store"))
    monkeypatch.chdir(scratch)
    (scratch / "tree/etc").mkdir(parents=True)
    (scratch / "tree/etc/hosts").write_text("localhost\n")
    (scratch / "tree/etc/motd").write_text("hello\n")
    for path in (scratch / "tree/etc").iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    line("import", "tree", "base", "-c", 'CMD ["sh"]', "-m", "a tree", "-a", "ann")
    return scratch


@pytest.fixture
def web(top: Path) -> str:
    """A container with three changes."""
    line("create", "--name", "web", "base", "make", "install")
    change(
        "web",
        lambda fs: fs.write_text("/etc/hosts", "localhost printer\n"),
        lambda fs: fs.unlink("/etc/motd"),
        lambda fs: fs.write_text("/new", "new"),
    )
    return "web"


WEB = ["C /etc/hosts", "D /etc/motd", "A /new"]


# Images


def test_import_of_a_directory(top: Path) -> None:
    (row,) = loaded("images")
    assert row["names"] == ["base:latest"]
    assert row["size"] == json.loads(ok("inspect", "base"))[0]["Size"] > 0
    (config,) = json.loads(ok("inspect", "base"))
    assert config["Config"] == {"Cmd": ["sh"]}
    assert config["Author"] == "ann"
    assert config["Comment"] == "a tree"


def test_import_of_a_tar_and_of_standard_input(top: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add("tree/etc", "etc", recursive=False)
        tar.add("tree/etc/motd", "etc/motd")
    (top / "t.tgz").write_bytes(buffer.getvalue())
    one = line("import", "t.tgz", "one:2")
    two = ok("import", "-", "two", stdin=buffer.getvalue()).strip()
    assert lines("diff", one, two) == []
    assert lines("diff", "base", "two") == ["D /etc/hosts"]
    fails("import", "missing.tar", "x", said="missing.tar: No such file")
    fails("import", "tree", "No Such Name", said="No Such Name")


def test_images(top: Path) -> None:
    image = loaded("images")[0]["id"]
    ok("tag", "base", "other:1")
    title, first, second = lines("images")
    assert title.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert first.split()[:3] == ["base", "latest", image[7:19]]
    assert second.split()[:3] == ["other", "1", image[7:19]]
    assert " ago " in first
    assert lines("images", "-q") == [image[7:19]]
    assert lines("images", "-q", "--no-trunc") == [image]
    assert image in ok("images", "--no-trunc")
    assert len(lines("images", "other")) == 2
    assert len(lines("images", "other:1")) == 2
    assert lines("images", "-q", "nothing") == []
    assert loaded("images", "other")[0]["names"] == ["base:latest", "other:1"]


def test_rmi(top: Path) -> None:
    image = loaded("images")[0]["id"]
    ok("tag", image[7:15], "other")
    assert lines("rmi", "other") == ["Untagged: other:latest"]
    ok("create", "--name", "c", "base")
    fails("rmi", "base", said="used by container 'c'")
    done = call("rmi", "gone", "base", "-f")
    assert done.exit_code == 1
    assert done.stderr == "unionfs: no image 'gone'\n"
    assert done.stdout == "Untagged: base:latest\n"
    assert "<none>" in ok("images")
    ok("rm", "c")
    assert json.loads(ok("rmi", "--json", image))[0] == {"deleted": image}
    assert lines("images", "-q") == []


def test_squash(web: str) -> None:
    line("commit", "web", "web:1")
    change("web", lambda fs: fs.unlink("/etc/hosts"))
    line("commit", "web", "web:2")
    line("squash", "web:2", "web:small")
    assert lines("diff", "web:2", "web:small") == []
    assert len(lines("history", "-q", "web:small")) == 1
    line("squash", "web:2", "--from", "base", "web:two", "-m", "two layers")
    assert len(lines("history", "-q", "web:two")) == 2
    assert loaded("history", "web:two")[0]["comment"] == "two layers"
    assert lines("diff", "web:2", "web:two") == []
    assert call("bloat", "web:2").stdout.count("/etc/hosts") == 2
    assert call("bloat", "web:small").stdout.count("\n") == 1


# Containers


def test_create_and_ps(top: Path) -> None:
    first = line("create", "base")
    second = line("create", "--name", "build", "base", "make", "-j2", "--quiet")
    assert len(first) == len(second) == 64
    title, newest, oldest = lines("ps")
    assert title.split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"]
    assert newest.split()[:5] == [second[:12], "base:latest", "make", "-j2", "--quiet"]
    assert newest.split()[-2:] == ["created", "build"]
    assert oldest.startswith(first[:12])
    assert lines("ps", "-aq") == [second[:12], first[:12]]
    assert lines("ps", "-q", "--no-trunc") == [second, first]
    row = loaded("ps")[0]
    assert row["id"] == second
    assert row["command"] == ["make", "-j2", "--quiet"]
    assert row["image_names"] == ["base:latest"]
    third = json.loads(ok("create", "--json", "--name", "third", "base"))
    assert (third["name"], len(third["id"])) == ("third", 64)
    assert loaded("fork", "third", "--name", "fourth")["name"] == "fourth"
    fails("create", "--name", "build", "base", said="in use")
    fails("create", "missing", said="missing")
    fails("create", said="IMAGE", status=2)


def test_rename_and_rm(top: Path) -> None:
    ok("create", "--name", "a", "base")
    ok("create", "--name", "b", "base")
    fails("rename", "a", "b", said="in use")
    fails("rename", "a", "no name", said="no name")
    ok("rename", "a", "c")
    done = call("rm", "c", "gone", "b")
    assert (done.exit_code, done.stdout) == (1, "c\nb\n")
    assert done.stderr == "unionfs: no container 'gone'\n"
    assert lines("ps", "-q") == []


def test_commit(web: str) -> None:
    words = ("-m", "a printer", "-a", "ann", "-c", 'CMD ["web"]', "-c", "ENV A=b", "--created-by", "by hand")
    image = line("commit", *words, "web", "web:1")
    assert image == loaded("images")[0]["id"]
    newest, oldest = loaded("history", "web:1")
    assert (newest["comment"], newest["author"], newest["created_by"]) == ("a printer", "ann", "by hand")
    assert oldest["names"] == ["base:latest"]
    (shown,) = json.loads(ok("inspect", "web:1"))
    assert shown["Config"]["Cmd"] == ["web"]
    assert shown["Config"]["Env"] == ["A=b"]
    assert lines("diff", "web") == []
    assert lines("diff", "web:1") == WEB
    fails("commit", "web", "x", "-c", "BOGUS y", said="BOGUS")
    fails("commit", "gone", "x", said="no container 'gone'")
    assert loaded("commit", "web")["names"] == []


def test_the_command_of_a_container_is_what_made_the_changes(web: str) -> None:
    line("commit", "web", "web:1")
    assert loaded("history", "web:1")[0]["created_by"] == "make install"


def test_fork_and_rollback(web: str) -> None:
    line("fork", "web", "--name", "try")
    assert lines("diff", "web") == lines("diff", "try") == WEB
    change("try", lambda fs: fs.unlink("/new"))
    assert lines("diff", "web") == WEB
    assert lines("diff", "try") == WEB[:2]
    ok("rollback", "web", "base")
    assert lines("diff", "web") == []
    before = loaded("log")
    ok("rollback", "web", next(node["id"] for node in before if "base:latest" not in node["names"])[:12])
    assert lines("diff", "web") == WEB
    change("web", lambda fs: fs.write_text("/newer", ""))
    ok("rollback", "--discard", "web", "web~1")
    assert lines("diff", "web") == WEB
    fails("rollback", "web", "try", said="fork it")
    fails("rollback", "web", "web~9", said="web")


# History


def test_diff_in_all_its_forms(web: str) -> None:
    assert lines("diff", "web") == WEB
    assert lines("diff", "web", "--path", "/etc") == WEB[:2]
    assert lines("diff", "web", "--docker") == ["C /etc", "C /etc/hosts", "D /etc/motd", "A /new"]
    done = call("diff", "web", "--stat")
    assert done.stdout.splitlines() == ["C /etc/hosts  data, times; +8 B", "D /etc/motd", "A /new  3 B"]
    assert done.stderr == "unionfs: 1 added, 1 changed, 1 deleted, 21 B written\n"
    assert [each["path"] for each in loaded("diff", "web")] == ["/etc/hosts", "/etc/motd", "/new"]
    assert lines("diff", "base", "web") == WEB
    assert lines("diff", "web", "base") == ["C /etc/hosts", "A /etc/motd", "D /new"]
    assert lines("diff", "base") == ["A /etc", "A /etc/hosts", "A /etc/motd"]
    fails("diff", "web", "--stat", "--json", said="not several", status=2)
    fails("diff", "web", "--path", "/gone", said="/gone")


def test_names_that_would_break_lines_and_terminals(web: str, top: Path) -> None:
    change("web", lambda fs: fs.write_bytes(b"/etc/" + HOSTILE, b""))
    shown = "/etc/\\xff\\x0a\\x1b[31mred"
    assert lines("diff", "web") == [*WEB[:2], f"A {shown}", WEB[2]]
    assert f"A {shown}" in lines("diff", "web", "--docker")
    assert call("diff", "web", "--stat").stdout.splitlines()[2] == f"A {shown}  0 B"
    assert os.fsencode(loaded("diff", "web")[2]["path"]) == b"/etc/" + HOSTILE
    line("commit", "web", "web:1", "-m", "two\nlines\x1b[2J", "-a", "\x1b]0;title\x07")
    change("web", lambda fs: fs.unlink(b"/etc/" + HOSTILE))
    line("commit", "web", "web:2")
    for words in (
        ["history", "web:2"],
        ["log", "--graph"],
        ["blame", "web:2", os.fsdecode(b"/etc/" + HOSTILE)],
        ["bloat", "web:2"],
        ["images"],
        ["ps"],
        ["du", "-a"],
    ):
        printed = call(*words)
        assert printed.exit_code == 0
        assert printed.stdout.replace("\n", "").isprintable(), words
    assert len(lines("history", "web:2")) == 4


def test_history(web: str) -> None:
    line("commit", "web", "web:1", "-m", "a printer")
    ok("commit", "web", "-c", "ENV A=b")
    title, newest, oldest = lines("history", "web:1")
    assert title.split() == ["LAYER", "CREATED", "CREATED", "BY", "AUTHOR", "SIZE", "COMMENT", "NAMES"]
    assert "make install" in newest
    assert "a printer" in newest
    assert "ann" in oldest
    first, second = lines("history", "-q", "web:1")
    assert newest.startswith(first)
    assert lines("history", "-q", "web") == [first, second]
    assert lines("history", "-q", "web:1~1") == [second]
    assert lines("history", loaded("images")[0]["id"])[1].startswith("<none>")
    fails("history", "gone", said="gone")


def test_log(web: str) -> None:
    line("commit", "web", "web:1", "-m", "a printer", "-a", "ann")
    ok("fork", "web", "--name", "try")
    change("try", lambda fs: fs.write_text("/try", ""))
    line("commit", "try", "try:1", "-m", "tried")
    change("web", lambda fs: fs.write_text("/web", ""))
    line("commit", "web", "web:2", "-m", "more")
    drawn = lines("log", "--graph")
    assert drawn[0].startswith("* ")
    assert any("|/" in row for row in drawn)
    assert sum("(web:2, container web) more" in row for row in drawn) == 1
    assert sum("(web:1) a printer — ann, " in row for row in drawn) == 1
    assert len(lines("log")) == len(lines("log", "-q")) == len(loaded("log")) == 4
    assert loaded("log")[0]["containers"] == ["web"]
    ok("rmi", "-f", "try:1")
    unnamed = next(each["id"] for each in loaded("images") if not each["names"])
    assert f"(image {unnamed[7:19]}, container try) tried" in ok("log")


def test_blame(web: str) -> None:
    line("commit", "web", "web:1", "-m", "a printer")
    title, newest, oldest = lines("blame", "web:1", "/etc/hosts")
    assert title.split()[-1] == "NAMES"
    assert "data, times" in newest
    assert "a printer" in newest
    assert "added" in oldest
    assert [each["kind"] for each in loaded("blame", "web:1", "/etc/motd")] == ["deleted", "added"]
    fails("blame", "web:1", "/never", said="/never")


def test_bloat(web: str) -> None:
    line("commit", "web", "web:1")
    done = call("bloat", "web:1")
    assert [row.split()[-1] for row in done.stdout.splitlines()[1:]] == ["/etc/hosts", "/etc/motd"]
    assert " in 2 entries that nobody can see" in done.stderr
    assert {each["how"] for each in loaded("bloat", "web:1")} == {"overwritten", "deleted"}


def test_inspect(web: str) -> None:
    done = call("inspect", "base", "gone", "web")
    assert done.exit_code == 1
    assert done.stderr == "unionfs: no image, container or layer 'gone'\n"
    image, container = json.loads(done.stdout)
    assert image["RepoTags"] == ["base:latest"]
    assert container["Name"] == "web"
    assert os.path.isdir(container["Upper"])


# The store


def test_a_note_is_no_damage(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from unionfs.images import fsck
    from unionfs.images.problems import Problem

    note = Problem("container", "left\nover", id="c", note=True)
    monkeypatch.setattr(fsck, "check_path", lambda path, report: [note])
    assert ok("fsck") == "note: container c: left\\x0aover\n"
    assert loaded("fsck")[0]["note"] is True


def test_gc(web: str) -> None:
    assert ok("gc") == "nothing to free\n"
    line("commit", "web")
    ok("rm", "web")
    freed = ok("gc")
    assert freed.startswith("freed 1 image, 1 layer, ")
    assert lines("images", "-q") == [loaded("images")[0]["id"][7:19]]
    assert loaded("gc")["images"] == []


def test_du(web: str) -> None:
    line("commit", "web", "web:1")
    kinds = [row.split()[0] for row in lines("du")]
    assert kinds == ["TYPE", "image", "image", "container"]
    assert {row["kind"] for row in loaded("du", "--all")} == {"image", "container", "layer"}
    assert [row.split()[0] for row in lines("du", "-s")] == ["TYPE", "image", "container", "layer", "snapshot"]
    for row in loaded("du"):
        assert row["size"] == row["own"] + row["shared"]


def test_fsck(web: str, top: Path) -> None:
    line("commit", "web", "web:1")
    assert ok("fsck") == ""
    assert loaded("fsck") == []
    image = loaded("images")[0]["id"]
    blob = top / "store/blobs/sha256" / image.removeprefix("sha256:")
    blob.chmod(0o600)
    blob.write_bytes(b"x")
    done = call("fsck")
    assert done.exit_code == 1
    assert image[7:19] in done.stdout
    assert call("fsck", "--json").exit_code == 1
    assert "damaged: unionfs fsck" in ok("images")
    assert lines("diff", "base", "web") == WEB
    os.truncate(top / "store/metadata.db", 5000)
    for left in ("wal", "shm"):
        (top / f"store/metadata.db-{left}").unlink(missing_ok=True)
    fails("images", said="metadata.db")
    done = call("fsck")
    assert (done.exit_code, done.stderr) == (1, "")
    assert done.stdout.startswith("database: ")
    assert call("fsck", "--store", top / "nowhere").stdout == "store: there is no such directory\n"


# All words


@pytest.mark.parametrize("before", [True, False])
def test_the_store_before_and_after_the_word(top: Path, before: bool) -> None:
    other = top / "other store"
    words = ["--store", other, "images", "-q"] if before else ["images", "-q", "--store", other]
    assert lines(*words) == []
    assert (other / "metadata.db").exists()
    assert len(lines("images", "-q")) == 1


def test_without_a_store(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIONFS_STORE", str(top / "tree/etc/hosts"))
    fails("images", said="no store can be used here")
    monkeypatch.delenv("UNIONFS_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(top / "data"))
    assert lines("images", "-q") == []
    assert (top / "data/unionfs/metadata.db").exists()


@pytest.mark.parametrize("word", STORE_WORDS)
def test_help_has_examples_that_are_calls(word: str) -> None:
    text = ok(word, "--help")
    assert f"unionfs {word} " in text.partition("Examples:")[2] or word in ("images", "ps", "gc", "fsck", "du", "log")
    assert "--store" in text
    examples = [row.strip() for row in text.partition("Examples:")[2].partition("\n\n")[0].splitlines() if row.strip()]
    assert examples
    assert all("unionfs " in example for example in examples)


def test_all_words_are_there() -> None:
    assert set(STORE_WORDS) <= set(COMMANDS)
    printed = ok("--help")
    for word, (_, text) in COMMANDS.items():
        assert word in printed
        assert text[:30] in printed
        assert len(text) < 66


def test_each_word_has_its_section() -> None:
    text = (support.REPO / "docs/cli.md").read_text()
    headings = [row[3:] for row in text.splitlines() if row.startswith("## ")]
    assert sorted(headings) == sorted([*STORE_WORDS, "mount"])


def completed(word: str, *before: str) -> list[str]:
    from click.shell_completion import ShellComplete

    return [item.value for item in ShellComplete(main, {}, "unionfs", "_X").get_completions(list(before), word)]


def test_completion(web: str, top: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert completed("", "rmi") == ["base:latest"]
    assert completed("w", "rm", "-f") == ["web"]
    assert completed("", "diff") == ["web", "base:latest"]
    assert set(completed("rm")) == {"rm", "rmi"}
    assert completed("", "--store", str(top / "nowhere"), "rm") == []
    assert completed("", "rm", "--store", str(top / "nowhere"), "") == []
    assert not (top / "nowhere").exists()
    (top / "broken").mkdir()
    (top / "broken/metadata.db").write_text("no database")
    assert completed("", "--store", str(top / "broken"), "rm") == []
    monkeypatch.setenv("UNIONFS_STORE", str(top / "nowhere"))
    assert completed("", "rmi") == []
    assert capfd.readouterr() == ("", "")


def test_a_list_imports_neither_trees_nor_engines(top: Path) -> None:
    code = (
        "import sys\n"
        "from unionfs.cli import main\n"
        "try: main(['images'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('fuse', 'rich', 'unionfs.mount', 'unionfs.run', 'unionfs.union')"
        " if name in sys.modules])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(support.REPO)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_option_has_a_word_of_help() -> None:
    for name in STORE_WORDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.help
