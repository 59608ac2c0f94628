"""What `knowledge=aegis` does where nothing more is said: the recipe that docs/evidence.md supports.

A subspace that closes less than it would have to alone, and feature distillation from the frozen backbone on the
robot's own samples, a few of them every few steps. The subspace keeps what the backbone knows about pictures that the
robot never sees, distillation what it knows about those that it does see, and neither looks at question data.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis_vla import AegisVLAConfig


@dataclass(frozen=True)
class Recipe:
    """How knowledge is kept: the fields of `AegisVLAConfig` of these names, decided."""

    projection: str
    energy: float | None
    reference: str
    penalty_weight: float
    reference_samples: int
    reference_every: int


RECOMMENDED = Recipe("subspace", 0.97, reference="features", penalty_weight=1.0, reference_samples=8, reference_every=4)
# A projection that was named does what its name says, and nothing is added to it.
PLAIN = Recipe("subspace", 0.99, reference="moments", penalty_weight=0.0, reference_samples=0, reference_every=1)
_FIELDS = [f.name for f in fields(Recipe)]
_DECIDING = ["knowledge", "directions", "epsilon", *_FIELDS]  # what a recipe follows from


def recipe_of(config: "AegisVLAConfig") -> Recipe:
    """The recipe of a configuration: what it says, and where it says None, what is recommended or plain."""
    chosen = RECOMMENDED if config.knowledge == "aegis" and config.projection is None else PLAIN
    if config.penalty_weight == 0:  # then nothing looks at a reference, unless a projection does
        chosen = replace(PLAIN, energy=chosen.energy)
    if config.epsilon is not None or config.directions is not None:  # another form was asked for
        chosen = replace(chosen, energy=None)
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
        if record["decided_by"] == {name: getattr(config, name) for name in _DECIDING}:
            return
        for name in record["filled_in"]:
            if getattr(config, name) == record["decided_by"][name]:
                setattr(config, name, None)
    filled_in = [name for name in _FIELDS if getattr(config, name) is None]
    for name, value in asdict(recipe_of(config)).items():
        setattr(config, name, value)
    decided_by = {name: getattr(config, name) for name in _DECIDING}
    config.recipe_record = {"filled_in": filled_in, "decided_by": decided_by}
