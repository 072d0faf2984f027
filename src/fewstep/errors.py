"""Every error that fewstep raises on purpose.

FewstepError
├── InputError          a value, file or folder that the user named is not what it must be
├── RecipeError         a recipe that can't be used: unknown technique, bad field, two claims on one thing
├── TraceError          a pipeline whose denoiser could not be found and checked by replay
├── MachineError        this machine lacks what was asked of it: a device, a compiler, free disk, an extra package
└── CheckpointError     weights that are damaged, of another model, or only partly there

A message says in one sentence what is wrong, where, and what would be right:
*The 'threshold' of Cache must be in [0, 1]. Got 3.*
"""


class FewstepError(Exception):
    """Base of all errors that fewstep raises on purpose."""


class InputError(FewstepError):
    """A value, file or folder that the user named is not what it must be."""


class RecipeError(FewstepError):
    """A recipe that can't be used. `problems` holds one sentence each; the message is all of them."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class TraceError(FewstepError):
    """A pipeline whose denoiser could not be found and checked by replay."""


class MachineError(FewstepError):
    """This machine lacks what was asked of it."""


class CheckpointError(FewstepError):
    """Weights that are damaged, of another model, or only partly there."""


def bad_value(field: str, owner: str, rule: str, got: object) -> str:
    """The one message shape: *The 'threshold' of Cache must be in [0, 1]. Got 3.*"""
    return f"The {field!r} of {owner} must be {rule}. Got {got!r}."
