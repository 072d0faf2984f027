"""`fewstep.json`: what a pipeline folder says about itself beyond `model_index.json`.

Plain diffusers ignores the file; `load` reads it for the call's defaults, and techniques for the steps that a student
was made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fewstep.errors import InputError, bad_value
from fewstep.files import read_json, write_json

FILE = "fewstep.json"


@dataclass(frozen=True)
class Manifest:
    """Facts about a pipeline folder.

    Attributes:
        name: what the zoo calls it.
        call: defaults of the pipeline's call (height, width, num_inference_steps, negative_prompt, …).
        steps: denoising steps that a student was made for; None for a teacher.
        times: the times of those steps in the schedule's own t, decreasing, with the end.
        sampler: a name in `fewstep.diffusion.samplers.SAMPLERS`; None: the pipeline's own scheduler.
        guidance_inside: a student that needs no unconditional call, since its teacher's guidance was distilled into it.
        teacher: name of the pipeline it was distilled from.
        causal: of a student that makes video chunk by chunk: its `size`, `window` and `sink` (`window.Chunks`).
        shares: component -> folder, relative to this one, that holds it on behalf of both.
        made_by: how it was made: command, versions, data, counts.
    """

    name: str
    call: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    times: tuple[float, ...] | None = None
    sampler: str | None = None
    guidance_inside: bool = False
    teacher: str | None = None
    causal: Mapping[str, Any] | None = None
    shares: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path | str) -> Manifest | None:
        """The manifest of a folder, None where it has none.

        Raises:
            InputError: the file is not JSON, lacks the name, or has a field that no manifest has.
        """
        path = Path(folder) / FILE
        if not path.exists():
            return None
        value = read_json(path)
        known = [f.name for f in fields(cls)]
        if not isinstance(value, dict) or "name" not in value:
            raise InputError(f"{path} must be a JSON object with a 'name'.")
        if unknown := sorted(set(value) - set(known)):
            raise InputError(bad_value(unknown[0], str(path), f"one of {', '.join(known)}", unknown[0]))
        for name in ("call", "shares", "made_by", "causal"):
            if not isinstance(value.get(name) or {}, dict):
                raise InputError(bad_value(name, str(path), "a JSON object", value[name]))
        times = value.get("times")
        if times is not None:
            if not isinstance(times, list) or not all(isinstance(t, (int, float)) for t in times):
                raise InputError(bad_value("times", str(path), "a list of numbers", times))
            value["times"] = tuple(float(t) for t in times)
        return cls(**value)

    def write(self, folder: Path | str) -> None:
        """Write the manifest into a pipeline folder.

        Raises:
            MachineError: the folder can't be written to.
        """
        write_json(Path(folder) / FILE, asdict(self))


def manifest_of(pipe: object) -> Manifest | None:
    """What `load` attached to a pipeline; None for one that came from elsewhere or whose folder has no manifest."""
    manifest = getattr(type(pipe), "fewstep_manifest", None)
    return manifest if isinstance(manifest, Manifest) else None
