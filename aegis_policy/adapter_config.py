"""What LeRobot's `--peft.*` means for this policy: which modules by default, what is refused, what travels beside."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.knowledge.adapters import check_adapters
from aegis_policy.knowledge.controller import PenaltyController
from aegis_policy.network.backbone import Backbone

# What an adapter checkpoint names as its base when that base is the pre-trained backbone itself.
FROM_BACKBONE = "aegis_vla/from-backbone"


class Adapters:
    """What LeRobot calls on a policy that is to get adapters."""

    config: AegisVLAConfig
    backbone: Backbone
    penalty_controller: PenaltyController | None

    @property
    def _adapted(self) -> bool:
        """Whether peft has put adapters into this policy: it leaves their configuration behind."""
        return hasattr(self, "peft_config")

    def _get_default_peft_targets(self) -> dict[str, Any]:
        return default_targets(self.backbone.layers())

    def _build_peft_config(self, cli_overrides: dict[str, Any]) -> Any:
        built = super()._build_peft_config(cli_overrides)  # type: ignore[misc]  # LeRobot's policy comes after this
        return with_dora(built) if self.config.use_dora else built

    def _validate_peft_config(self, peft_config: Any) -> None:
        state = ["progress"] if self.penalty_controller is None else ["progress", "penalty_controller"]
        accept_adapters(self.config, peft_config, state=state)
        if not self.config.pretrained_path:
            self.name_or_path = FROM_BACKBONE


def default_targets(layers: Iterable[str]) -> dict[str, Any]:
    """Adapters on every linear map of the language layers that the prefix passes; the expert is trained whole.

    Args:
        layers: Their qualified names inside the VLM.
    """
    names = "|".join(re.escape(name) for name in layers)
    return {"target_modules": rf"backbone\.vlm\.({names})\..*_proj", "modules_to_save": ["expert"]}


def with_dora(peft_config: Any) -> Any:
    """The same adapters as DoRA.

    Raises:
        ValueError: If they are no LoRA.
    """
    if not hasattr(peft_config, "use_dora"):
        raise ValueError(
            f"--policy.use_dora makes a DoRA of LoRA; {peft_config.peft_type} is none. Drop one of the two, or give "
            "--peft.method_type=LORA."
        )
    peft_config.use_dora = True
    return peft_config


def accept_adapters(config: AegisVLAConfig, peft_config: Any, *, state: Sequence[str]) -> None:
    """Refuses adapters that contradict the policy, and lists what its checkpoint must carry beside them.

    Args:
        config: Of the policy.
        peft_config: Complete; its modules to save are extended.
        state: Modules of the policy that a resumed training needs.

    Raises:
        ValueError: If nothing can protect or train these adapters, the reference has no meaning for them, or a new
            expert would stay as it was drawn.
    """
    if config.knowledge == "frozen" or (config.knowledge == "stop_gradient" and not config.cotraining_share):
        raise ValueError(
            f"--peft.* adapts the backbone, and under knowledge={config.knowledge} the action loss does not reach it: "
            "its adapters would stay at zero. Leave --peft.* out, or give --policy.knowledge=aegis or none."
        )
    if config.knowledge == "aegis":
        check_adapters(peft_config, projection=config.recipe.projection)
    if config.recipe.reference == "weights":
        raise ValueError(
            "--policy.reference=weights holds the pre-trained weights back, and under --peft.* those do not move. "
            "Leave --policy.reference out, or choose another."
        )
    if not config.pretrained_path and "expert" not in (peft_config.modules_to_save or []):
        raise ValueError(
            "A new action expert begins with random weights and is trained and saved whole: got "
            f"--peft.full_training_modules={peft_config.modules_to_save}. Add expert to it, or leave it out."
        )
    peft_config.modules_to_save = [*(peft_config.modules_to_save or []), *state]
