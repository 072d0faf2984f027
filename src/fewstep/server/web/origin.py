"""Which pages may open a socket. Pure."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}


def may_connect(origin: str | None, host: str, loopback: bool, allowed: Collection[str]) -> bool:
    """Whether a page of this origin may open a socket to a server that was asked for as `host`.

    Browsers let every page open sockets to every server, and name the page's origin; other programs name none. A server
    that is reached through the loopback device answers to its own names alone: else a page could point a name of its
    site to 127.0.0.1, and be of the same origin.
    """
    if origin is None or origin in allowed:
        return True
    page, scheme = urlsplit(origin), urlsplit(origin).scheme
    asked = urlsplit(f"//{host}")
    try:
        same = (page.hostname, page.port or PORTS.get(scheme)) == (asked.hostname, asked.port or PORTS.get(scheme))
    except ValueError:  # a port that is no number
        return False
    return same and scheme in PORTS and (not loopback or is_loopback(asked.hostname or ""))


def is_loopback(host: str) -> bool:
    """Whether this host name or address is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
