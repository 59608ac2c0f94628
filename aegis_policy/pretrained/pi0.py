"""pi0 (arXiv 2410.24164): the state is a token of the expert, time goes beside each action."""

from collections.abc import Callable
from typing import Any

from aegis_policy.pretrained.openpi import OpenPI


def _lerobot() -> tuple[Any, Callable[[str], Any]]:
    from lerobot.policies.pi0 import modeling_pi0

    return modeling_pi0.PI0Pytorch, modeling_pi0.get_gemma_config


PI0 = OpenPI(
    lerobot=_lerobot,
    prompt_form="pi0",
    time_conditioning="concat",
    projections={
        "state_in.": "state_proj.",
        "action_in.": "action_in_proj.",
        "time_mlp.0.": "action_time_mlp_in.",
        "time_mlp.2.": "action_time_mlp_out.",
        "action_out.": "action_out_proj.",
    },
)
