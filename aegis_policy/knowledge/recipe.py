"""What `knowledge=aegis` does where nothing more is said: the recipe that docs/evidence.md supports.

A subspace that closes less than it would have to alone, and feature distillation from the frozen backbone on the
robot's own samples, a few of them every few steps. The subspace keeps what the backbone knows about pictures that the
robot never sees, distillation what it knows about those that it does see, and neither looks at question data.

How much is closed goes by the backbone. On the embedded one a share of the inputs' energy keeps what a share of their
directions keeps, and acts better. In a real language model, which is wider, the same energy is in fewer directions and
lost a fifth of what is seen, where the share of directions kept nearly all of it.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

from aegis_policy.network.backbone import NANO

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis_vla import AegisVLAConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How knowledge is kept: the fields of `AegisVLAConfig` of these names, decided."""

    projection: str = "subspace"
    energy: float | None = None
    directions: float | None = None
    reference: str
    penalty_weight: float
    reference_samples: int
    reference_every: int


RECOMMENDED = Recipe(energy=0.97, reference="features", penalty_weight=1.0, reference_samples=8, reference_every=4)
# On any backbone but the embedded one.
RECOMMENDED_ELSEWHERE = replace(RECOMMENDED, energy=None, directions=0.3)
# A projection that was named does what its name says, and nothing is added to it.
PLAIN = Recipe(energy=0.99, reference="moments", penalty_weight=0.0, reference_samples=0, reference_every=1)
_FIELDS = [f.name for f in fields(Recipe)]
_CLOSING = ("energy", "directions", "epsilon")  # of which one says what a subspace closes
_DECIDING = ["knowledge", "backbone", "epsilon", *_FIELDS]  # what a recipe follows from


def recipe_of(config: "AegisVLAConfig") -> Recipe:
    """The recipe of a configuration: what it says, and where it says None, what is recommended or plain."""
    chosen = PLAIN
    if config.knowledge == "aegis" and config.projection is None:
        chosen = RECOMMENDED if config.backbone == NANO else RECOMMENDED_ELSEWHERE
    if config.penalty_weight == 0:  # then nothing looks at a reference, unless a projection does
        chosen = replace(PLAIN, energy=chosen.energy, directions=chosen.directions)
    if any(getattr(config, name) is not None for name in _CLOSING):
        chosen = replace(chosen, energy=None, directions=None)
    given = {name: getattr(config, name) for name in _FIELDS}
    return replace(chosen, **{name: value for name, value in given.items() if value is not None})


def fill_in(config: "AegisVLAConfig") -> None:
    """Writes the recipe into a configuration, so that what is saved says what was done, and records it.

    A configuration that comes from a checkpoint has been filled in before. As long as it says what it said then, it
    stays, whatever is recommended by now; where an option has been given anew (`--policy.path=... --policy.knowledge=
    none`), what had only been filled in is decided again. An option given anew as it was filled in counts as filled in.
    """
    record = config.recipe_record
    if record is not None:
        if all(getattr(config, name) == value for name, value in record["decided_by"].items()):
            return
        for name in record["filled_in"]:
            if getattr(config, name) == record["decided_by"][name]:
                setattr(config, name, None)
    filled_in = [name for name in _FIELDS if getattr(config, name) is None]
    for name, value in asdict(recipe_of(config)).items():
        setattr(config, name, value)
    decided_by = {name: getattr(config, name) for name in _DECIDING}
    config.recipe_record = {"filled_in": filled_in, "decided_by": decided_by}
