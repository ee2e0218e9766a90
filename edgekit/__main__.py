"""`python -m edgekit`: the command line."""

from edgekit.cli.main import main

main()
