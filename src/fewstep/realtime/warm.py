"""What sessions of a model compile, compiled before anybody waits for it."""

from __future__ import annotations

from fewstep.realtime.model import LiveModel
from fewstep.realtime.opening import CANDIDATES
from fewstep.realtime.peers import stream
from fewstep.realtime.regions import SHARE
from fewstep.techniques import Compile


def warm(model: LiveModel, prompt: str) -> None:
    """One call of each kind that there is, unless that was done under the techniques that are on: a chunk without a
    past, one after another, and one of which only a part is computed. All show `prompt`."""
    if Compile.name not in model.engaged or model.warm_since == model.changes:
        return
    with model.lock:
        if model.warm_since == model.changes:  # another session was quicker
            return
        rolling = stream(model, prompt, seed=0)
        rolling.candidates = CANDIDATES
        rolling.chunk(model.steps)
        while not rolling.full:
            rolling.chunk(model.steps)
        rolling.share = 1.0 if model.parts is None else SHARE
        rolling.chunk(model.steps)
        rolling.close()
        model.warm_since = model.changes
