"""A memory for applications: three memories over one database, and three ways to combine them."""
