"""pi0.5 (arXiv 2504.16054): the state is text of the prompt, time scales, shifts and gates the expert's norms."""

from collections.abc import Callable
from typing import Any

from aegis_policy.pretrained.openpi import OpenPI


def _lerobot() -> tuple[Any, Callable[[str], Any]]:
    from lerobot.policies.pi05 import modeling_pi05

    return modeling_pi05.PI05Pytorch, modeling_pi05.get_gemma_config


PI05 = OpenPI(
    lerobot=_lerobot,
    prompt_form="pi05",
    time_conditioning="adaptive_norm",
    projections={
        "action_in.": "action_in_proj.",
        "time_mlp.0.": "time_mlp_in.",
        "time_mlp.2.": "time_mlp_out.",
        "action_out.": "action_out_proj.",
    },
)
