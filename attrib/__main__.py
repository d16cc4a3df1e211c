"""`python -m attrib`: the command line."""

from attrib.cli import main

main()
