"""Makes ``python -m indexcache`` the command line."""

from .cli import main

main()
