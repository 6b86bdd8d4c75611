"""A memory store for applications: a database that is the truth, and indexes in memory that follow it."""
