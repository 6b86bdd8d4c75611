"""Who may ask, and where what is theirs is kept: API keys, and one open store a tenant."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from memory_titan.store.manager import TitansManager

logger = logging.getLogger(__name__)

KEY = re.compile(r"[!-~]{16,256}")  # what can stand in a header
TENANT = 200  # characters


class Keys:
    """API keys, each of one tenant. Only digests are kept, under a secret that this process alone knows."""

    def __init__(self) -> None:
        self._secret = os.urandom(32)
        self._tenants: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._tenants)

    def add(self, tenant: str, key: str) -> None:
        """Let `key` open `tenant`, which may have several. ValueError, which never shows the key, if that cannot be."""
        if not isinstance(tenant, str) or not 0 < len(tenant) <= TENANT or not tenant.isprintable():
            raise ValueError(f"a tenant's name has 1 to {TENANT} printable characters; got {tenant!r:.60}")
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise ValueError(f"the key of {tenant!r} must have 16 to 256 ASCII characters and no spaces")
        if self._tenants.setdefault(self._digest(key), tenant) != tenant:
            raise ValueError(f"{tenant!r} has the same key as another tenant")

    def tenant(self, key: str) -> str | None:
        """Whose key it is. It takes as long whichever key matches, and if none does."""
        digest, found = self._digest(key), None
        for known, tenant in self._tenants.items():
            if hmac.compare_digest(known, digest):
                found = tenant
        return found

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=32).digest()


def store_file(tenant: str) -> str:
    """The name of a tenant's file: a hash, so that no name leaves the folder or meets another; readable in front."""
    readable = re.sub("[^a-z0-9]+", "-", tenant.lower())[:32].strip("-")
    digest = hashlib.sha256(tenant.encode()).hexdigest()
    return f"{readable}-{digest}.memory".lstrip("-")


@dataclass
class _Entry:
    manager: TitansManager | None = None
    users: int = 0
    opening: threading.Lock = field(default_factory=threading.Lock)


class Stores:
    """Opens a tenant's store when it is first used, and closes those that were not used for longest.

    Args:
        open_store: from a tenant's name to its manager.
        limit: how many stay open; more only while more are in use at once.
    """

    def __init__(self, open_store: Callable[[str], TitansManager], limit: int) -> None:
        self._open_store, self.limit = open_store, limit
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the longest unused first
        self._closing: set[str] = set()  # these must be closed before they can be opened again
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._entries)

    @contextlib.contextmanager
    def use(self, tenant: str) -> Iterator[TitansManager]:
        """The tenant's manager, which stays open meanwhile. For threads; whatever opening it raises."""
        with self._changed:
            while tenant in self._closing:
                self._changed.wait()
            entry = self._entries.setdefault(tenant, _Entry())
            entry.users += 1
            self._entries.move_to_end(tenant)
        try:
            self._close(self.limit)
            with entry.opening:
                if entry.manager is None:
                    entry.manager = self._open_store(tenant)
            yield entry.manager
        finally:
            with self._changed:
                entry.users -= 1
                if not entry.users and entry.manager is None:
                    del self._entries[tenant]
            self._close(self.limit)

    def close(self) -> None:
        """Close all that are not in use."""
        self._close(0)

    def _close(self, limit: int) -> None:
        with self._changed:
            idle = [tenant for tenant, entry in self._entries.items() if not entry.users]
            surplus = idle[: max(0, len(self._entries) - limit)]
            entries = [self._entries.pop(tenant) for tenant in surplus]
            self._closing.update(surplus)
        for tenant, entry in zip(surplus, entries, strict=True):
            try:
                if entry.manager is not None:
                    entry.manager.close()
            except Exception:  # the request that is being answered was another's
                logger.exception("a store could not be closed well")
            finally:
                with self._changed:
                    self._closing.discard(tenant)
                    self._changed.notify_all()
