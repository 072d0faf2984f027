"""One paragraph on the best layout, with the numbers that decided."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fewstep.errors import InputError
from fewstep.plan.cost import COMPILED, Mode, Prediction
from fewstep.plan.layouts import alone, ranked
from fewstep.plan.machines import Cluster
from fewstep.plan.work import Work

# In the order in which devices are best spent. What is in braces is filled in by `_facts`.
REASONS = {
    "data": "The batch of {batch} is cut into {parts}, for prompts need nothing of each other",
    "guidance": "The {branches} branches of guidance run side by side and meet once a step over {sent}",
    "ulysses": "Ulysses cuts the tokens by {parts} of the {heads} heads and sends {sent} a step",
    "ring": "A ring of {parts} passes keys and values on, {sent} a step, {hidden} of it behind attention",
    "tensor": "Tensor parallelism cuts the denoiser's weights to {weights} a device and sends {sent} a step",
}


def explain(
    work: Work,
    cluster: Cluster,
    found: Sequence[Prediction],
    mode: Mode = COMPILED,
    *,
    encoders: bool = True,
    without: Collection[str] = (),
) -> str:
    """Why the first of `found` is first, which is what `ranked` gives for the same arguments."""
    best, one = found[0], alone(work, cluster, mode, encoders=encoders)
    room = "" if one.fits else f", where it would not fit: {gb(one.need)} of {gb(one.capacity)}"
    sentences = [
        f"Predicted best of {len(found)}: {best.layout}, {seconds(best.seconds)}, "
        f"{one.seconds / best.seconds:.1f} times as fast as one {cluster.device.name} ({seconds(one.seconds)}{room})."
    ]
    for name, reason in REASONS.items():
        if getattr(best.layout, name) > 1:
            sentences.append(f"{reason.format(**_facts(work, best, name))} ({_without(found, name)}).")
    if best.layout.ring > 1 and work.network.heads % (best.layout.sequence * best.layout.tensor):
        parts = best.layout.sequence * best.layout.tensor
        sentences.append(
            f"The {work.network.heads} heads can't be divided by {parts}, so Ulysses can't replace the ring."
        )
    if best.layout.vae > 1:
        sentences.append(
            f"Decoding in {best.layout.vae} parts takes {seconds(best.decoding)} instead of {seconds(one.decoding)}."
        )
    if best.launching > best.compute / 10:
        sentences.append(f"{best.launching / best.compute:.0%} of computing is waiting for the host to start kernels.")
    sentences.append(
        f"A step computes for {seconds(best.compute)} and waits {seconds(best.exposed)} for what is sent; "
        f"a device needs {gb(best.need)} of {gb(best.capacity)}."
    )
    return " ".join([*sentences, *_half(work, cluster, mode, encoders, without)])


def seconds(value: float) -> str:
    """`1234 s`, `1.23 s`, `45 ms`."""
    if value >= 100:
        return f"{value:.0f} s"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def gb(value: float) -> str:
    """Bytes as people read them: `1.2 GB`, `34 MB`."""
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"


def _facts(work: Work, best: Prediction, name: str) -> dict[str, object]:
    return {
        "parts": getattr(best.layout, name),
        "batch": work.batch,
        "branches": work.branches,
        "heads": work.network.heads,
        "sent": gb(best.sent.get(name, 0.0)),
        "hidden": f"{best.hidden / best.sending['ring']:.0%}" if best.sending["ring"] else "nothing",
        "weights": gb(best.memory["denoiser"]),
    }


def _without(found: Sequence[Prediction], name: str) -> str:
    """What the best layout would be that does not use this way of sharing."""
    others = [one for one in found if getattr(one.layout, name) == 1]
    if not others:
        return "without it so many devices can't be used"
    first = others[0]
    if first.fits:
        return f"without it {first.layout}, {seconds(first.seconds)}"
    return f"without it a device would need {gb(min(one.need for one in others))}, and has {gb(first.capacity)}"


def _half(work: Work, cluster: Cluster, mode: Mode, encoders: bool, without: Collection[str]) -> list[str]:
    """What half of the devices would give."""
    counted = "nodes" if cluster.nodes > 1 else "per_node"
    half, odd = divmod(getattr(cluster, counted), 2)
    if odd:
        return []
    smaller = replace(cluster, **{counted: half})
    try:
        best = ranked(work, smaller, mode, encoders=encoders, without=without)[0]
    except InputError:
        return [f"On {smaller} it would not fit."]
    return [f"On {smaller} the best would take {seconds(best.seconds)} ({best.layout})."]
