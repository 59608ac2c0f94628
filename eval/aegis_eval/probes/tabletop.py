"""The same questions on what the robot's camera sees, answered from the simulator's state."""

from collections.abc import Iterator

import gymnasium
import numpy as np
from PIL import Image

import aegis_envs  # noqa: F401  (registers the environment with gymnasium)
from aegis_backbones.questions import FAMILIES, ask
from aegis_eval.probes.registry import Probe
from aegis_policy.vqa import SPLITS, VQASample

PROBE = Probe(
    name="tabletop",
    version=1,
    source="tabletop",
    count=700,
    seed=0,
    description="the same kinds of questions about frames of the robot's camera",
)

ENVIRONMENT = "aegis_envs/Tabletop-v0"
CAMERA = "front"
VISIBLE = 0.5  # share of a thing's pixels that must show for it to be asked about
HIDDEN = 0.02  # below it nobody would say that the thing is there
MOVES = 3  # control steps towards a random pose, at most
REACH = 0.5  # how far from the present pose towards a random one, at most
SKIPS = 200  # frames in a row that admit no question of a family before something must be wrong


def tabletop_frames(*, count: int, seed: int, split: str) -> list[VQASample]:
    """Questions about frames of the tabletop environment: all tasks, colours and shapes, the arm anywhere.

    Each question has a frame of its own; families take turns. A frame in which a thing is half hidden is left
    out, since a count or an "is there" would have no clear answer.

    Args:
        count: How many questions.
        seed: The same seed gives the same frames and questions.
        split: `"train"` or `"validation"`; they never share an episode.

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split is one of {SPLITS}; received {split!r}.")
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    environment = gymnasium.make(ENVIRONMENT, task="all", kinds="all", phrasings="all", cameras=(CAMERA,))
    try:
        frames = _frames(environment, rng, parity=SPLITS.index(split))
        return [_question(frames, rng, FAMILIES[i % len(FAMILIES)]) for i in range(count)]
    finally:
        environment.close()


Objects = list[tuple[str, str, float, float]]  # (colour, shape, u, v), u right and v down in [0, 1]


def _frames(
    environment: gymnasium.Env, rng: np.random.Generator, *, parity: int
) -> Iterator[tuple[Image.Image, Objects]]:
    """Frames with what can be seen on them; episode seeds of one parity, so that splits share none."""
    while True:
        observation, _ = environment.reset(seed=2 * int(rng.integers(2**30)) + parity)
        observation = _move_arm(environment, observation, rng)
        things = environment.unwrapped.scene_objects()  # type: ignore[attr-defined]
        if any(HIDDEN < thing.visible < VISIBLE for thing in things):
            continue
        objects = [
            (thing.colour, thing.shape, float(thing.pixel[0]), float(thing.pixel[1]))
            for thing in things
            if thing.visible >= VISIBLE
        ]
        yield Image.fromarray(observation["pixels"][CAMERA]), objects


def _move_arm(environment: gymnasium.Env, observation: dict, rng: np.random.Generator) -> dict:
    """A few control steps towards a random pose."""
    space = environment.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    start = observation["agent_pos"]
    target = start + rng.uniform(0, REACH) * (rng.uniform(space.low, space.high) - start)
    for _ in range(int(rng.integers(MOVES + 1))):
        observation, _, terminated, truncated, _ = environment.step(target.astype(np.float32))
        if terminated or truncated:
            break
    return observation


def _question(frames: Iterator[tuple[Image.Image, Objects]], rng: np.random.Generator, family: str) -> VQASample:
    for _ in range(SKIPS):
        image, objects = next(frames)
        asked = ask(objects, rng, family)
        if asked is not None:
            return VQASample(images=(image,), question=asked.question, answers=asked.answers, family=asked.family)
    raise RuntimeError(
        f"{SKIPS} frames of {ENVIRONMENT} in a row admitted no {family!r} question: its scenes or its "
        "scene_objects() must have changed."
    )
