"""The vocabulary of things: names, looks and which combinations demonstrations never show.

The environments and the pre-training scenes of the embedded backbone speak of the same shapes and colours, so that
"the red cube" of an instruction is the "red cube" of a question.
"""

from itertools import product
from typing import NamedTuple

COLOURS: dict[str, tuple[float, float, float]] = {  # name -> linear RGB in [0, 1]
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.12, 0.25, 0.90),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.55, 0.15, 0.70),
    "orange": (0.98, 0.50, 0.05),
}

SHAPES: tuple[str, ...] = ("cube", "ball", "cylinder")  # things that can be grasped and pushed
TARGET_SHAPE = "disc"  # flat, on the table: where things are put


class ObjectKind(NamedTuple):
    """What an object is called: `"red cube"`."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


ALL_KINDS: tuple[ObjectKind, ...] = tuple(ObjectKind(c, s) for c, s in product(COLOURS, SHAPES))

# A third of the combinations, each colour missing one shape and each shape two colours: every word is
# demonstrated, these pairs of words never are.
NEVER_SHOWN_KINDS: tuple[ObjectKind, ...] = tuple(
    ObjectKind(colour, SHAPES[i % len(SHAPES)]) for i, colour in enumerate(COLOURS)
)
SHOWN_KINDS: tuple[ObjectKind, ...] = tuple(k for k in ALL_KINDS if k not in NEVER_SHOWN_KINDS)
