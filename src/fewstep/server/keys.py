"""Who may ask: keys of which only hashes are kept, their limits, and no requests on behalf of other web sites."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from fastapi import Request

from fewstep.server.config import KeyEntry
from fewstep.server.errors import ApiError, busy
from fewstep.server.web.origin import is_loopback, may_connect

EVERYONE = KeyEntry(name="everyone", sha256="0" * 64)
MINUTE = 60.0
NO_KEY = "This server needs a key: send 'Authorization: Bearer KEY' with one that its operator gave you."


def new_key() -> str:
    return "fs-" + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def find(key: str, entries: Iterable[KeyEntry]) -> KeyEntry | None:
    """The entry of a key. Every entry is compared, in constant time: how long it takes tells nothing."""
    digest = hashed(key)
    matches = [entry for entry in entries if hmac.compare_digest(entry.sha256, digest)]
    return matches[0] if matches else None


@dataclass
class Rate:
    """At most so many requests of each owner within any minute."""

    clock: Callable[[], float] = time.monotonic
    _times: dict[str, deque[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self, owner: str, most: int | None) -> float:
        """Count a request; where that is one too many, count nothing and say how many seconds to wait."""
        if most is None:
            return 0.0
        with self._lock:
            now, times = self.clock(), self._times.setdefault(owner, deque())
            while times and times[0] <= now - MINUTE:
                times.popleft()
            if len(times) >= most:
                return times[0] + MINUTE - now
            times.append(now)
            return 0.0


@dataclass(frozen=True)
class Door:
    """Lets a request in, or refuses it.

    Attributes:
        keys: who may ask; None: everyone.
        guarded: without keys, refuse requests that a browser sends on behalf of another site.
    """

    keys: tuple[KeyEntry, ...] | None
    guarded: bool
    rate: Rate = field(default_factory=Rate)

    def enter(self, request: Request) -> KeyEntry:
        """Who asks.

        Raises:
            ApiError: 401 no or a wrong key, 403 a request of another site.
        """
        if self.keys is None:
            if self.guarded:
                refuse_other_sites(request.headers.get("host", ""), request.headers.get("origin"))
            return EVERYONE
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        entry = find(key.strip(), self.keys) if scheme.lower() == "bearer" else None
        if entry is None:
            raise ApiError(401, NO_KEY, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return entry

    def why_not(self, key: str | None) -> str | None:
        """Why a live socket that came with this key is refused; None where it may stay."""
        return None if self.keys is None or find(key or "", self.keys) else NO_KEY

    def admit(self, request: Request) -> KeyEntry:
        """Who asks to make something; counts the request.

        Raises:
            ApiError: as `enter`; 429, too many in this minute.
        """
        caller = self.enter(request)
        if wait := self.rate.wait(caller.name, caller.requests_per_minute):
            raise busy(
                f"The key {caller.name!r} may make {caller.requests_per_minute} requests a minute.",
                wait,
                "rate_limit_exceeded",
            )
        return caller


def refuse_other_sites(host: str, origin: str | None) -> None:
    """A page of any site can let its visitor's browser call a server on the visitor's machine. Not this one.

    Raises:
        ApiError: 403, the page is another server's, or `host` is a name that someone else gave this machine.
    """
    if not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise ApiError(403, f"This server answers to localhost and 127.0.0.1, not to the host {host!r}.", "wrong_host")
    if not may_connect(origin, host, True, ()):
        raise ApiError(403, f"This server takes no requests from pages of {origin!r}.", "wrong_origin")
