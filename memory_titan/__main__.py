"""`python -m memory_titan`: the command line."""

from memory_titan.cli import main

main()
