"""The tricks, one file each. `TECHNIQUES` holds them by the name that a recipe calls them."""

from fewstep.techniques.base import Engaged, Stage, Technique
from fewstep.techniques.cache import Cache, Regions
from fewstep.techniques.compile import Compile
from fewstep.techniques.few_step import FewStep
from fewstep.techniques.host import Host
from fewstep.techniques.parallel import Parallel
from fewstep.techniques.precision import Precision
from fewstep.techniques.quantize import Quantize

# Within one stage the order here is the order of applying: a student takes its place before its weights are cast,
# and a cache goes around the regions, so that it can spare whole steps of them.
TECHNIQUES: dict[str, type[Technique]] = {
    technique.name: technique for technique in (FewStep, Precision, Quantize, Parallel, Regions, Cache, Compile, Host)
}

__all__ = [
    "TECHNIQUES",
    "Cache",
    "Compile",
    "Engaged",
    "FewStep",
    "Host",
    "Parallel",
    "Precision",
    "Quantize",
    "Regions",
    "Stage",
    "Technique",
]
