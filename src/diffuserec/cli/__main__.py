"""Command line as ``python -m diffuserec.cli``."""

from diffuserec.cli import main

main()
