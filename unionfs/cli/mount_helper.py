"""``mount.unionfs``: what mount(8) calls for ``mount -t fuse.unionfs`` and for a line of fstab.

    mount.unionfs SOURCE MOUNTPOINT [-sfnvrw] [-t TYPE] [-o OPTIONS]        (mount(8), "EXTERNAL HELPERS")

mount(8) looks for a helper of the type's own name, ``/sbin/mount.fuse.unionfs``. Where there is none it takes
``mount.fuse``, which calls ``unionfs SOURCE MOUNTPOINT -o OPTIONS`` by the PATH; that comes here as well.
"""

from __future__ import annotations

import errno
import getopt
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence

import click

from unionfs.cli.errors import EXPECTED, describe
from unionfs.errors import MountError

HELPER = "mount.unionfs"
LINKS = ("mount.fuse.unionfs", "mount.unionfs")

# mount(8), "EXIT STATUS"
_USAGE = 1
_FAILED = 32

_HELP = f"""\
Usage: {HELPER} SOURCE MOUNTPOINT [-sfnvrw] [-o OPTIONS]

OPTIONS, in overlayfs's words: lowerdir=TOP:…:BOTTOM  upperdir=DIR  workdir=DIR  (":" in a name is "\\:")
and ro, noexec, nodev, nosuid, noatime, allow_other, attr_timeout=SECONDS, engine=NAME, …

A line of /etc/fstab:
  unionfs  /mnt/merged  fuse.unionfs  lowerdir=/srv/base,upperdir=/srv/up,workdir=/srv/work  0  0
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Mount as mount(8) asks. The exit status: 0 when the mount answers, 1 for wrong usage, 32 for failure."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        given, names = getopt.gnu_getopt(args, "sfnvrwho:t:N:", ["help"])
    except getopt.GetoptError as error:
        return _complain(str(error), _USAGE)
    flags = {flag for flag, _ in given}
    if flags & {"-h", "--help"}:
        print(_HELP, end="")
        return 0
    if len(names) not in (1, 2):
        return _complain("SOURCE and MOUNTPOINT, please (--help tells more)", _USAGE)
    try:
        _mount(names, ",".join(value for flag, value in given if flag == "-o"), flags)
    except EXPECTED as error:
        return _complain(describe(error), _FAILED)
    return 0


def _complain(text: str, status: int) -> int:
    print(f"{HELPER}: {text}", file=sys.stderr)
    return status


def _mount(names: list[str], options: str, flags: set[str]) -> None:
    from unionfs.cli.mount import request_for
    from unionfs.mount import daemon
    from unionfs.mount.options import parse_options

    if "remount" in options.split(","):
        raise MountError(errno.EINVAL, "remount is not supported; umount, then mount", names[-1])
    stack = parse_options(options, sloppy="-s" in flags)
    if "-r" in flags:
        stack.fields["read_only"] = True
    if len(names) == 2 and names[0]:
        stack.fields.setdefault("source", names[0])
    request = request_for(names[-1], stack)
    if "-f" in flags:  # mount --fake: all but the mount itself
        return
    record = daemon.spawn(request)
    if "-v" in flags:
        print(f"{HELPER}: {record.mountpoint}: mounted by {record.engine}, pid {record.pid}")


@click.command()
@click.option("--dir", "directory", default="/sbin", show_default=True, help="Where mount(8) looks for helpers.")
def install(directory: str) -> None:
    """Let mount(8) and /etc/fstab mount unions.

    \b
    Links mount.fuse.unionfs (for the type fuse.unionfs) and mount.unionfs (for the type unionfs) in /sbin to the
    mount.unionfs of this installation. The same by hand:
      ln -s "$(command -v mount.unionfs)" /sbin/mount.fuse.unionfs
    """
    beside = os.path.join(sysconfig.get_path("scripts"), HELPER)
    program = beside if os.path.exists(beside) else shutil.which(HELPER)
    if program is None:
        raise MountError(errno.ENOENT, "this installation has no such program", HELPER)
    for name in LINKS:
        link = os.path.join(directory, name)
        if os.path.realpath(link) == os.path.realpath(program):
            click.echo(f"{link}: in place")
        elif os.path.exists(link) and not os.path.islink(link):
            click.echo(f"{link}: belongs to something else, left alone", err=True)
        else:
            temporary = f"{link}.{os.getpid()}"
            os.symlink(program, temporary)
            os.rename(temporary, link)
            click.echo(f"{link} -> {program}")


if __name__ == "__main__":
    sys.exit(main())
