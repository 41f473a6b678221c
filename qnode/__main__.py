"""`python -m qnode` is `qnode`."""

from qnode.cli.main import main

main()
