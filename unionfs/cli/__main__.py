"""``python -m unionfs.cli``: the ``unionfs`` command where it is not on the PATH."""

from unionfs.cli import main

main(prog_name="unionfs")
