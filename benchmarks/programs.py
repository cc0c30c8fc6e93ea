"""What the programs of the workloads work on, the same at every run: a git repository, a C project, wheels."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.scratch import Unsupported

COMMITS = 50
_ABOUT = (
    "union layer lower upper work whiteout opaque redirect copy merge name node handle read write tree path index "
    "inode entry cache mount lookup rename unlink link time mode owner device root stack base origin"
)
WORDS = _ABOUT.split()

# Nobody's own configuration, and no question about who owns a directory.
GIT_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_CONFIG_KEY_1": "gc.auto",
    "GIT_CONFIG_VALUE_1": "0",
    "GIT_CONFIG_KEY_2": "maintenance.auto",
    "GIT_CONFIG_VALUE_2": "false",
    "GIT_TERMINAL_PROMPT": "0",
}


# What `make bench` tells a make that it starts, and what would lead pip elsewhere.
_OURS_ALONE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in _OURS_ALONE}
    return {**kept, **GIT_ENVIRONMENT, "PIP_CONFIG_FILE": os.devnull, "PIP_ROOT_USER_ACTION": "ignore"}


def run(*command: str, cwd: str | Path | None = None, data: bytes | None = None) -> str:
    """Run a program in `cwd`, with `data` as its input; its output.

    :exc:`Unsupported` when it is not installed. CalledProcessError, with what it wrote to standard error.
    """
    if shutil.which(command[0]) is None:
        raise Unsupported(f"{command[0]} is not installed")
    try:
        done = subprocess.run(command, cwd=cwd, env=_environment(), input=data, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        error.stderr = os.fsdecode(error.stderr)
        raise
    return os.fsdecode(done.stdout)


def git(*arguments: str, cwd: str | Path | None = None) -> str:
    """Run git without anybody's configuration; its output."""
    return run("git", *arguments, cwd=cwd)


def _text(rng: random.Random, lines: int) -> str:
    return "".join(" ".join(rng.choices(WORDS, k=9)) + "\n" for _ in range(lines))


def _repository_stream(files: int) -> Iterator[bytes]:
    """For ``git fast-import``: a first commit of `files` files in a tenth as many directories, then small ones."""
    rng = random.Random(11)

    def commit(number: int, names: list[int]) -> Iterator[bytes]:
        message = f"Change {number}".encode()
        when = 1_700_000_000 + number * 3600
        yield b"commit refs/heads/main\ncommitter A Person <a@example.org> %d +0000\n" % when
        yield b"data %d\n%s\n" % (len(message), message)
        for i in names:
            data = _text(rng, min(400, int(rng.lognormvariate(3.5, 1.2)) + 1)).encode()
            path = f"part{i // 1000:02d}/module{i // 10 % 100:02d}/file{i:06d}.c"
            yield b"M 100644 inline %s\ndata %d\n%s\n" % (path.encode(), len(data), data)

    yield from commit(0, list(range(files)))
    for number in range(1, COMMITS):
        yield from commit(number, rng.sample(range(files), max(1, files // 200)))


def repository(path: Path, files: int) -> None:
    """A bare repository of `COMMITS` commits, packed; `files` files of some lines each."""
    git("init", "-q", "--bare", "--initial-branch=main", str(path))
    run("git", "fast-import", "--quiet", cwd=path, data=b"".join(_repository_stream(files)))
    git("repack", "-adq", cwd=path)


def c_project(path: Path, sources: int) -> None:
    """`sources` C files of ten functions each, a header for each, and a Makefile that links them to ``program``."""
    (path / "src").mkdir(parents=True)
    (path / "include").mkdir()
    rng = random.Random(13)
    for i in range(sources):
        guard = f"MODULE{i}_H"
        (path / "include" / f"module{i}.h").write_text(
            f"#ifndef {guard}\n#define {guard}\n"
            + "".join(f"int module{i}_function{k}(int x);\n" for k in range(10))
            + "#endif\n"
        )
        used = sorted(rng.sample(range(sources), min(8, sources)))
        text = "#include <errno.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
        text += "".join(f'#include "module{j}.h"\n' for j in {*used, i})
        for k in range(10):
            called = rng.choice(used)
            call = f"module{called}_function{k}(x - 1)" if called < i else "x"
            text += (
                f"\nint module{i}_function{k}(int x)\n{{\n"
                f"    int sum = {rng.randrange(1000)};\n"
                f"    for (int i = 0; i < x; i++)\n        sum = sum * 31 + (i ^ {rng.randrange(1000)});\n"
                f"    if (x > {rng.randrange(1000)})\n        sum += {call};\n    return sum;\n}}\n"
            )
        if i == 0:
            text += '\nint main(void)\n{\n    return printf("%d\\n", module0_function0(3)) < 0;\n}\n'
        (path / "src" / f"module{i}.c").write_text(text)
    objects = " ".join(f"build/module{i}.o" for i in range(sources))
    (path / "Makefile").write_text(
        f"CFLAGS = -O0 -Iinclude -MMD\n\nbuild/program: {objects}\n\t$(CC) -o $@ $^\n\n"
        "build/%.o: src/%.c\n\t@mkdir -p build\n\t$(CC) $(CFLAGS) -c -o $@ $<\n\n"
        "-include $(wildcard build/*.d)\n"
    )


WHEELS = 5


def wheels(path: Path, modules: int) -> None:
    """`WHEELS` pure-Python wheels, ``bench_wheel0`` …, of `modules` modules together, which need each other in turn."""
    path.mkdir(parents=True)
    rng = random.Random(17)
    for number in range(WHEELS):
        name = f"bench_wheel{number}"
        info = f"{name}-1.0.dist-info"
        files = {f"{name}/__init__.py": ""}
        for i in range(modules // WHEELS):
            body = "".join(
                f"\ndef function{k}(value):\n"
                f'    """{" ".join(rng.choices(WORDS, k=8)).capitalize()}."""\n'
                f"    found = [one for one in range(value) if one % {rng.randrange(2, 99)}]\n"
                f"    return {{one: str(one) for one in found}}\n"
                for k in range(rng.randrange(1, 25))
            )
            files[f"{name}/part{i // 20}/module{i}.py"] = body
        needs = f"Requires-Dist: bench_wheel{number - 1}\n" if number else ""
        files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}"
        files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: benchmarks\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        files[f"{info}/RECORD"] = "".join(f"{one},,\n" for one in [*files, f"{info}/RECORD"])
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for one, text in files.items():
                archive.writestr(zipfile.ZipInfo(one, (2020, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
        (path / f"{name}-1.0-py3-none-any.whl").write_bytes(buffer.getvalue())
