"""One server for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from fewstep.server.config import ServerConfig
from tests.cli.conftest import fewstep  # noqa: F401
from tests.server.running import MOVING, SHAPES, Running, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    recipes = {"half": "half", "plain": []}
    models = (SHAPES.model_copy(update={"recipes": recipes}), MOVING)
    with running(ServerConfig(models=models, folder=tmp_path_factory.mktemp("served"))) as server:
        yield server


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return server.client()
