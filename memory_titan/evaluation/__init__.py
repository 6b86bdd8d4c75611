"""Measurements: each prints what it found, failures first, and can be run by anyone with the command it names."""
