"""One Ray for all tests of workers: starting it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fewstep.batch.cluster import Cluster, cluster


@pytest.fixture(scope="package")
def ray_here() -> Iterator[Cluster]:
    with cluster(processes=2) as there:
        yield there
