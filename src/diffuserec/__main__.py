"""Command line as ``python -m diffuserec``."""

from diffuserec.cli import main

main()
