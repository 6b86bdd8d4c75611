"""The memory in use: what a person meets on the terminal."""
