"""The store's embedder for tests is for these tests too."""
