"""Our own Ray is nobody else's, and a cluster that does not answer is told soon."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from fewstep.batch import cluster as module
from fewstep.batch.cluster import Cluster, cluster
from fewstep.batch.crew import Crew, Places
from fewstep.errors import InputError, MachineError


def listening() -> Iterator[str]:
    """The addresses at which the processes below this one listen."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that has just ended
            for connection in child.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    yield connection.laddr.ip


def test_our_own_ray_listens_on_the_loopback_alone(ray_here: Cluster) -> None:
    addresses = set(listening())
    assert addresses
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


def test_the_one_that_is_there_is_taken(ray_here: Cluster) -> None:
    with cluster() as there:
        assert there == Cluster(False, ray_here.gpus, ray_here.cpus, 1, ray_here.cores)
    with cluster():  # still there
        pass
    with (
        pytest.raises(InputError, match=r"connected to a Ray already: leave out the address 10\.0\.0\.1:6379"),
        cluster("10.0.0.1:6379"),
    ):
        pass


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=f"No Ray cluster answers at {address} within 3 seconds"):
            module._probe(address)


def test_an_address_that_is_none() -> None:
    with pytest.raises(InputError, match="Could not connect to a Ray cluster at nonsense: "):
        module._probe("nonsense")


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    before = dict(os.environ)
    with pytest.raises(MachineError, match=r"needs the package 'ray': pip install 'fewstep\[ray\]'"), cluster():
        pass
    assert dict(os.environ) == before


OWN = Cluster(own=True, gpus=0, cpus=8, machines=1, cores=8)
FARM = Cluster(own=False, gpus=16, cpus=64, machines=2, cores=32)
CPUS = Cluster(own=False, gpus=0, cpus=24, machines=2, cores=8)


@pytest.mark.parametrize(
    ("crew", "there", "places"),
    [
        (Crew(), OWN, Places(1, 8, {"num_cpus": 1})),
        (Crew(workers=2), OWN, Places(2, 4, {"num_cpus": 1})),
        (Crew(workers=20), OWN, Places(20, 1, {"num_cpus": 1})),
        (Crew(), FARM, Places(16, 4, {"num_gpus": 1, "num_cpus": 0})),
        (Crew(group=8), FARM, Places(2, 4, {"num_gpus": 1, "num_cpus": 0})),
        (Crew(workers=3, threads=2), FARM, Places(3, 2, {"num_gpus": 1, "num_cpus": 0})),
        (Crew(), CPUS, Places(2, 8, {"num_cpus": 8})),
        (Crew(workers=4), CPUS, Places(4, 4, {"num_cpus": 4})),
    ],
)
def test_who_gets_what(crew: Crew, there: Cluster, places: Places) -> None:
    assert crew.on(there) == places


@pytest.mark.parametrize(
    ("crew", "there", "most"),
    [(Crew(workers=17), FARM, 16), (Crew(workers=3, group=8), FARM, 2), (Crew(workers=4, threads=8), CPUS, 3)],
)
def test_more_than_there_is(crew: Crew, there: Cluster, most: int) -> None:
    with pytest.raises(InputError, match=f"'workers' of a batch must be at most {most}, for "):
        crew.on(there)


def test_a_group_larger_than_all_there_is() -> None:
    with pytest.raises(InputError, match="'group' of a batch must be at most 16"):
        Crew(group=17).on(FARM)
