"""Which tasks there are, how they are grouped, and what LeRobot tells a policy about each.

LeRobot keeps descriptions and its own grouping by difficulty in a file of its package, which is read here: knowing the
tasks needs neither metaworld nor MuJoCo.
"""

import difflib
import json
from functools import cache
from importlib.resources import files
from typing import Any

PREFIX = "metaworld-"  # LeRobot lets a task's name begin with it
# Meta-World's MT10 benchmark (arXiv 1910.10897), in its order.
MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)


def descriptions() -> dict[str, str]:
    """Task -> the instruction that LeRobot's environment gives a policy."""
    found: dict[str, str] = _lerobots_tasks()["TASK_DESCRIPTIONS"]
    return dict(found)


def groups() -> dict[str, tuple[str, ...]]:
    """Group -> its tasks: LeRobot's four difficulties, Meta-World's MT10, and all fifty."""
    by_difficulty: dict[str, list[str]] = _lerobots_tasks()["DIFFICULTY_TO_TASKS"]
    return {
        **{group: tuple(tasks) for group, tasks in by_difficulty.items()},
        "mt10": MT10,
        "mt50": tuple(descriptions()),
    }


def parse_tasks(text: str) -> tuple[str, ...]:
    """The tasks that a comma-separated list of names and groups means, each once, in its order.

    Raises:
        ValueError: If a name is neither a task nor a group, or there is none.
    """
    known, by_group = descriptions(), groups()
    found: list[str] = []
    for given in (name.strip() for name in text.split(",") if name.strip()):
        name = given.removeprefix(PREFIX)
        if name not in known and name not in by_group:
            near = difflib.get_close_matches(name, [*known, *by_group], n=3, cutoff=0.4)
            raise ValueError(
                f"task must be one of Meta-World's {len(known)} tasks, as reach-v3, or a group of them "
                f"({', '.join(by_group)}); got {given!r}."
                + (f" Near to it: {', '.join(near)}." if near else f" Tasks: {', '.join(known)}.")
            )
        found += by_group.get(name, (name,))
    if not found:
        raise ValueError(f"task must name at least one of Meta-World's tasks, as reach-v3; got {text!r}.")
    return tuple(dict.fromkeys(found))


@cache
def _lerobots_tasks() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((files("lerobot.envs") / "metaworld_config.json").read_text())
    return content
