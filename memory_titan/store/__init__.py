"""A store of short texts that applications remember and search."""
