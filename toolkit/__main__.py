"""``python -m toolkit``: the command line from a bare checkout."""

from toolkit.cli import main

main()
