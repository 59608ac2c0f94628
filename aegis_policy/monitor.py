"""What is asked of the backbone every `probe_freq` training steps.

A *monitor* is a class that somebody's package offers under the entry-point group `aegis_policy.monitors`. It is built
once, with `count` (questions a family), and called as `monitor(vlm, step)`; it returns scores in [0, 1] for the
training log. It must not draw from the global random generators, so that a probed run trains as an unprobed one.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Protocol

import torch
from torch import nn

from aegis_policy.aegis import is_sharded, rank, world_size
from aegis_policy.answering import VLM

MONITORS = "aegis_policy.monitors"


class Monitor(Protocol):
    """Asks a VLM and scores it."""

    def __call__(self, vlm: VLM, step: int) -> dict[str, float]:
        """Scores by name, such as `{"vqa": 0.97, "vqa_colour": 0.99}`."""


def load_monitor(name: str, *, count: int) -> Monitor:
    """The monitor that an installed package offers under `name`.

    Raises:
        ValueError: If nobody offers that name; the message lists the names that exist.
    """
    found = {e.name: e for e in entry_points(group=MONITORS)}
    if name not in found:
        raise ValueError(
            f"No monitor is called {name!r}. Installed: {', '.join(sorted(found)) or 'none'}. A package offers one "
            f"through the entry-point group {MONITORS!r}; --policy.probe_freq=0 does without."
        )
    monitor: Monitor = found[name].load()(count=count)
    return monitor


def ask_on_first_rank(ask: Callable[[], dict[str, float]], backbone: nn.Module) -> dict[str, float]:
    """Scores of a monitor, on every rank: rank 0 asks and the others wait, for all ranks log the same entries.

    Args:
        ask: Asks the backbone.
        backbone: Whose weights each rank holds whole.

    Raises:
        RuntimeError: If the weights are sharded: one rank alone cannot run them.
    """
    if any(is_sharded(p) for p in backbone.parameters()):
        raise RuntimeError(
            "A monitor runs the whole backbone on one rank, and here its weights are sharded over several. Leave "
            "--policy.probe_freq at 0 and probe the checkpoints with aegis-probe."
        )
    scores = [ask() if rank() == 0 else {}]
    if world_size() > 1:
        torch.distributed.broadcast_object_list(scores, src=0)
    return scores[0]
