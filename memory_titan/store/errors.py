"""What can go wrong with a store, by kind. Each message says which store, what is wrong, and what to do."""

from __future__ import annotations


class StoreError(ValueError):
    """Base of all of them."""


class StoreLockedError(StoreError):
    """Another process is writing to the store."""


class StoreFileError(StoreError):
    """No store, a damaged one, or one of a newer version."""


class StoreReadOnlyError(StoreError):
    """A write to a store that was opened for reading, or that may not be written."""


class StoreFullError(StoreError):
    """What must never be pushed out has no room."""


class EmbedderMismatchError(StoreError):
    """The store's vectors were made by another model."""
