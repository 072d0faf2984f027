"""The table of devices, and the words for clusters."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import InputError
from fewstep.plan.machines import Cluster, cluster_of, devices

NAMES = [device.name for device in devices().values()]


@given(st.sampled_from(NAMES), st.integers(1, 8), st.integers(1, 99999))
def test_what_a_cluster_is_called_names_it(name: str, count: int, nodes: int) -> None:
    cluster = Cluster(devices()[name.lower().replace("-", "").removeprefix("rtx")], count, nodes)
    assert cluster_of(str(cluster)) == cluster
    assert cluster_of(f"{nodes}x{count}x{name.upper()}").devices == nodes * count


@given(st.text(max_size=20))
def test_any_other_words_are_refused_in_one_sentence(text: str) -> None:
    said = ""
    try:
        assert cluster_of(text).device.name in NAMES
    except InputError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("text", ["", "8x", "0xH100", "-1xH100", "H100x8", "8xPotato", "8.5xH100"])
def test_what_is_no_machine(text: str) -> None:
    with pytest.raises(InputError, match="of the form 8xH100"):
        cluster_of(text)


def test_more_than_a_node_holds() -> None:
    with pytest.raises(InputError, match="write 2x8xH100"):
        cluster_of("16xH100")
    assert cluster_of("72xGB200").devices == 72


def test_names_are_read_as_people_write_them() -> None:
    for text in ("rtx 4090", "RTX4090", "4090", "NVIDIA RTX 4090"):
        assert cluster_of(f"2x{text}") == cluster_of("2xRTX4090")


def test_groups_within_a_node_use_its_links() -> None:
    cluster = cluster_of("2x8xH100")
    assert cluster.link(8).bandwidth == 450e9
    assert cluster.link(16).bandwidth == 50e9
    assert cluster.link(3).bandwidth == 50e9  # some of the groups of three lie across both nodes
    assert cluster_of("3xH100").link(3).bandwidth == 450e9


def test_every_device_says_where_its_numbers_are_from() -> None:
    assert all(device.source.startswith("https://") for device in devices().values())


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    entry = {**devices()["l20"].model_dump(), "name": "L20", "link": 5.0}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"devices": [entry, {**entry, "name": "910B"}]}))
    return path


def test_a_table_of_ones_own_goes_first(mine: Path) -> None:
    assert cluster_of("8xL20", mine).device.link == 5.0
    assert cluster_of("8x910b", mine).device.name == "910B"
    assert cluster_of("8xL20").device.link == 32


def test_tables_that_are_none(mine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        devices(tmp_path / "none.yaml")
    for text, rule in (("[", "YAML"), ("devices: 3", "one list"), ("devices: [{name: x}]", "tflops")):
        mine.write_text(text)
        with pytest.raises(InputError, match=rule):
            devices(mine)
    mine.write_text(mine.read_text().replace("x", "x, speed: 3"))
    with pytest.raises(InputError, match=r"speed|tflops"):
        devices(mine)
