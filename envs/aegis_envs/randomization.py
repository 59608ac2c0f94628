"""Domain randomisation: how an episode's world differs from the nominal one, as a function of the episode's seed.

Six kinds, each with a random stream of its own: what one kind draws, and the episode itself (task, scene, instruction,
the arm's start), is the same whichever other kinds are on. Objects keep their colours and shapes and tables stay
greyish, so that instructions stay true. Ranges are meant to be those of a desk and its lamps, a camera that was put
back by hand, plastic on wood, a USB camera and a bus of servos: chosen, not measured, but for the play of +-0.5
degrees, which the robot model's authors note (MuJoCo Menagerie).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aegis_envs.units import JOINTS

ARM_JOINTS = len(JOINTS) - 1  # without the gripper
TABLE_PATTERNS = 6  # the number of patterns in looks.py; 0 is plain

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Lights:
    """The lamp and what comes from all sides.

    Attributes:
        azimuth: Degrees by which the lamp is turned about the vertical.
        elevation: Degrees by which it stands higher.
        strength: Factor of the lamp's light.
        ambient: Factor of the light from all sides.
        tint: Factors of red, green and blue of both: warmer or colder light.
    """

    azimuth: float
    elevation: float
    strength: float
    ambient: float
    tint: Triple


@dataclass(frozen=True)
class Table:
    """The table's surface: a pattern by number, its colour (linear RGB) and how often the pattern repeats."""

    pattern: int
    colour: Triple
    repeat: float


@dataclass(frozen=True)
class View:
    """One camera: metres by which it stands aside (its own axes: right, up, back), degrees about these axes, and the
    factor of its field of view."""  # fmt: skip

    shift: Triple
    turn: Triple
    field: float


@dataclass(frozen=True)
class Views:
    """Both cameras."""

    front: View
    wrist: View


@dataclass(frozen=True)
class Dynamics:
    """Factors of each object's mass, of the friction of objects and table, and of that of the jaws."""

    masses: tuple[float, ...]
    friction: float
    grip: float


@dataclass(frozen=True)
class Latency:
    """Seconds from an action to the servos' hearing of it."""

    seconds: float


@dataclass(frozen=True)
class Backlash:
    """Degrees that each arm joint can be turned by hand while its servo stands still."""

    play: tuple[float, ...]


@dataclass(frozen=True)
class Randomization:
    """What is drawn of each kind; None: that kind is nominal."""

    lights: Lights | None = None
    textures: Table | None = None
    camera: Views | None = None
    dynamics: Dynamics | None = None
    latency: Latency | None = None
    backlash: Backlash | None = None

    def record(self) -> dict[str, Any]:
        """Plain data of the kinds that were drawn, for `info` and logs."""
        return {kind: value for kind, value in asdict(self).items() if value is not None}


def _lights(rng: np.random.Generator, _: int) -> Lights:
    warmth = rng.uniform(-0.08, 0.08)
    return Lights(
        azimuth=rng.uniform(-60.0, 60.0),
        elevation=rng.uniform(-10.0, 20.0),
        strength=rng.uniform(0.75, 1.25),  # darker, and orange is brown
        ambient=rng.uniform(0.8, 1.3),
        tint=(1.0 + warmth, 1.0, 1.0 - warmth),
    )


def _table(rng: np.random.Generator, _: int) -> Table:
    grey = rng.uniform(0.35, 0.8)
    colour = np.clip(grey + rng.uniform(-0.08, 0.08, 3), 0.0, 1.0)  # a hint of colour, never that of an object
    return Table(int(rng.integers(TABLE_PATTERNS)), _triple(colour), rng.uniform(2.0, 8.0))


def _views(rng: np.random.Generator, _: int) -> Views:
    def view(shift: float, turn: Triple, field: tuple[float, float]) -> View:
        return View(
            _triple(rng.uniform(-shift, shift, 3)),
            _triple(rng.uniform(-1.0, 1.0, 3) * turn),
            rng.uniform(*field),
        )

    # The front camera rather sees more than less, so that nothing leaves its image.
    return Views(front=view(0.015, (0.7, 0.7, 2.0), (1.0, 1.1)), wrist=view(0.003, (2.0, 2.0, 2.0), (0.95, 1.05)))


def _dynamics(rng: np.random.Generator, objects: int) -> Dynamics:
    masses = np.exp(rng.uniform(np.log(0.5), np.log(2.0), objects))
    return Dynamics(tuple(masses.tolist()), friction=rng.uniform(0.7, 1.4), grip=rng.uniform(0.8, 1.2))


def _latency(rng: np.random.Generator, _: int) -> Latency:
    return Latency(rng.uniform(0.0, 0.1))


def _backlash(rng: np.random.Generator, _: int) -> Backlash:
    return Backlash(tuple(rng.uniform(0.0, 1.0, ARM_JOINTS).tolist()))


def _triple(values: np.ndarray) -> Triple:
    first, second, third = values.tolist()
    return first, second, third


_DRAW: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "lights": _lights,
    "textures": _table,
    "camera": _views,
    "dynamics": _dynamics,
    "latency": _latency,
    "backlash": _backlash,
}
KINDS = tuple(_DRAW)


def parse_randomize(randomize: str) -> tuple[str, ...]:
    """The kinds of `"none"`, `"all"` or a comma-separated list.

    Raises:
        ValueError: If one is not known.
    """
    names = [name.strip() for name in randomize.split(",") if name.strip()]
    if names in ([], ["none"]):
        return ()
    if names == ["all"]:
        return KINDS
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise ValueError(
            f"randomize must be none, all, or some of {', '.join(KINDS)}, separated by commas; got {randomize!r}."
        )
    return tuple(kind for kind in KINDS if kind in names)


def draw_randomization(rng: np.random.Generator, kinds: tuple[str, ...], *, objects: int) -> Randomization:
    """Draws the named kinds, each from a child of the generator's seed; the generator itself draws nothing."""
    if not kinds:
        return Randomization()
    children = dict(zip(KINDS, rng.spawn(len(KINDS)), strict=True))
    return Randomization(**{kind: _DRAW[kind](children[kind], objects) for kind in kinds})
