"""Devices and how they are joined: a table, and the words that name a cluster (`8xH100`, `2x8xH100`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep.errors import InputError, bad_value
from fewstep.files import read_entries

TABLE = Path(__file__).with_name("devices.yaml")
NAMED = re.compile(r"(?:(?:([1-9]\d{0,4})x)?([1-9]\d{0,4})x)?(.+)", re.IGNORECASE)
FORM = "of the form 8xH100, or 2x8xH100 for two nodes of eight"


class Device(BaseModel):
    """One device and its links, in the units of `devices.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    tflops: float = Field(gt=0)
    linear: float = Field(gt=0, le=1)
    attention: float = Field(gt=0, le=1)
    memory: float = Field(gt=0)
    memory_bandwidth: float = Field(gt=0)
    link: float = Field(gt=0)
    link_latency: float = Field(ge=0)
    net: float = Field(gt=0)
    net_latency: float = Field(ge=0)
    node: int = Field(ge=1)
    source: str = ""

    def rate(self, share: float) -> float:
        """Operations a second at a share of the data sheet's."""
        return self.tflops * 1e12 * share


@dataclass(frozen=True)
class Link:
    """Between two devices: bytes a second in one direction, and the seconds that any collective takes at least."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Cluster:
    """`nodes` machines of `per_node` equal devices."""

    device: Device
    per_node: int = 1
    nodes: int = 1

    @property
    def devices(self) -> int:
        return self.nodes * self.per_node

    def link(self, reach: int) -> Link:
        """The slowest link of a group whose devices lie within `reach` neighbouring ranks."""
        inside = self.nodes == 1 or (reach <= self.per_node and self.per_node % reach == 0)
        device = self.device
        gb, us = (device.link, device.link_latency) if inside else (device.net, device.net_latency)
        return Link(gb * 1e9, us * 1e-6)

    def __str__(self) -> str:
        nodes = f"{self.nodes}x" if self.nodes > 1 else ""
        return f"{nodes}{self.per_node}x{self.device.name}"


def devices(extra: Path | str | None = None) -> dict[str, Device]:
    """All devices by their plain names; those of a YAML table of the user's own go first.

    Raises:
        InputError: no such file, or not a table like `devices.yaml`.
    """
    own = _read(Path(extra)) if extra is not None else ()
    return {_plain(device.name): device for device in (*_shipped(), *own)}


def cluster_of(text: str, extra: Path | str | None = None) -> Cluster:
    """The cluster that `8xH100` (devices of one node) or `2x8xH100` (nodes and devices of each) names.

    Raises:
        InputError: another form, an unknown device (the known are named), or more devices than a node holds.
    """
    known = devices(extra)
    found = NAMED.fullmatch(text.strip())
    device = known.get(_plain(found[3])) if found else None
    if found is None or device is None:
        names = ", ".join(device.name for device in known.values())
        rule = f"{FORM}, with a device of {names} or of a --devices file"
        raise InputError(bad_value("--machine", "a plan", rule, text))
    nodes, count = int(found[1] or 1), int(found[2] or 1)
    if count > device.node:
        whole = f"{-(-count // device.node)}x{device.node}x{device.name}"
        raise InputError(
            f"One node holds at most {device.node} {device.name}: write {whole} for several nodes. Got {text}."
        )
    return Cluster(device, count, nodes)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("nvidia").removeprefix("rtx")


@cache
def _shipped() -> tuple[Device, ...]:
    return _read(TABLE)


def _read(path: Path) -> tuple[Device, ...]:
    return tuple(_device(entry, path) for entry in read_entries(path, "devices"))


def _device(entry: object, path: Path) -> Device:
    try:
        return Device.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "entry"
        raise InputError(
            bad_value(where, f"a device in {path}", f"right ({first['msg']})", first.get("input"))
        ) from None
