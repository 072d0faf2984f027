"""Curves: nothing is lost in thinning, medians are medians, and what the guard said is on them."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.bench.training import plots
from fewstep.bench.training.read import read_run
from tests.bench.training import runs


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return read_run(runs.whole(tmp_path_factory.mktemp("run"), 1200)).stages


def test_thinning_keeps_every_spike():
    values = np.ones(50_000)
    values[[7, 31_234]] = 9.0, -5.0
    steps, kept = plots.thinned(np.arange(50_000.0), values)
    assert len(kept) <= plots.DENSE
    assert (np.diff(steps) >= 0).all()
    assert {(7.0, 9.0), (31_234.0, -5.0)} <= set(zip(steps, kept, strict=True))
    short = np.arange(20.0)
    assert plots.thinned(short, short)[0] is short


def test_a_running_median_follows_and_ignores_spikes():
    steps = np.arange(4000.0)
    values = steps.copy()
    values[::50] = 1e9
    at, medians = plots.running_median(steps, values)
    assert len(at) == plots.SMOOTH
    inner = slice(5, -5)
    assert np.abs(medians[inner] - at[inner]).max() < 5


def test_panels_of_a_stage(stages):
    kd, dmd2 = stages
    assert [panel.title for panel in plots.losses(dmd2)] == ["loss of student", "loss of critic"]
    titles = [panel.title for panel in plots.metrics(kd)]
    assert titles == ["prompt accuracy  ↑", "distance  ↓", "seed", "frechet  ↓"]
    assert [panel.best for panel in plots.metrics(kd)] == [900, 900, None, 900]
    assert len(plots.metrics(kd)[3].steps) == 7  # it was not measured at first
    effort = plots.effort(kd)
    assert [panel.title for panel in effort] == ["gradient norm of student", "rate", "seconds a step"]
    assert effort[0].line == ("clip", 1.0)


def test_verdicts_are_on_every_panel(stages):
    figure = plots.draw(plots.losses(stages[1]), stages[1])
    assert len(figure.axes) == 2
    for axes in figure.axes:
        drawn = {tuple(np.unique(line.get_xdata())) for line in axes.lines if line.get_color() == plots.BAD}
        assert drawn == {(350.0,)}
        assert any(line.get_marker() == "^" and list(line.get_xdata()) == [150] for line in axes.lines)


def test_curves_that_are_not_numbers_or_a_single_point_can_be_drawn(stages):
    steps = np.array([1.0, 2.0])
    nothing = plots.Panel("a", steps, np.full(2, np.nan))
    one = plots.Panel("b", steps[:1], np.zeros(1), raw=False, sparse=True, best=1)
    wide = plots.Panel("c", np.arange(100.0), np.geomspace(1, 1e6, 100))
    figure = plots.draw([nothing, one, wide], stages[0])
    assert figure.axes[0].texts[0].get_text() == "no finite value"
    assert figure.axes[1].get_title(loc="right") == "best 0 at step 1"
    assert figure.axes[2].get_yscale() == "log"
