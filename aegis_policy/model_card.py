"""What a policy's card on the hub says beyond LeRobot's: what was fine-tuned, how, and what it still knows."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from huggingface_hub import ModelCard

from aegis_policy.aegis import SUBSPACES
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.network.backbone import NANO

PLACE = "## Evaluation"  # of LeRobot's template; ours stands before it, or at the end where it is missing
SECTION = """## Knowledge

`aegis_vla` pairs a vision-language model, {base}, with a flow-matching action expert. It needs LeRobot's plugin
`lerobot_policy_aegis_vla`, which fine-tunes such a model without it forgetting what it knew
(AEGIS, [arXiv 2604.16067](https://arxiv.org/abs/2604.16067)).

- **How the backbone was trained:** {treatment}
- **What it answered when it was last asked:** {answers}

It can be asked about a picture, and about everything that it was probed with:

```bash
aegis-ask {repository} "what is on the table?" --image=photo.jpg
aegis-probe {repository}
```

"""
# Beside knowledge, projection and reference: told where they are not at their defaults.
TOLD = (
    "use_peft",
    "use_dora",
    "tune_vision",
    "num_vlm_layers",
    "penalty_bound",
    "loss_temperature",
    "cotraining_share",
    "optimizer_backbone_lr",
    "optimizer_vision_lr",
)


def tell_knowledge(card: ModelCard, config: AegisVLAConfig, scores: Mapping[str, float], *, step: int) -> ModelCard:
    """The card with a section on knowledge, and with the model that was fine-tuned in its metadata.

    Args:
        card: LeRobot's.
        config: Of the policy.
        scores: The monitor's last, `vqa` and `vqa_<family>`: shares of right answers. May be empty.
        step: After how many training steps it gave them; those before the first are of the untouched backbone.
    """
    base = config.init_from or config.backbone
    on_hub = base != NANO and not Path(base).exists()
    if on_hub:
        card.data["base_model"] = base
    section = SECTION.format(
        base=f"[{base}](https://huggingface.co/{base})" if on_hub else f"`{Path(base).name}`",
        treatment=_treatment(config),
        answers=_answers(scores, step) if scores and step else "nothing is on record (`--policy.probe_freq`).",
        repository=config.repo_id or "FOLDER",
    )
    before, place, after = card.text.partition(PLACE)
    card.text = before + ("" if place else "\n") + section + place + after
    return card


def _treatment(config: AegisVLAConfig) -> str:
    told = ["knowledge"]
    if config.knowledge == "aegis":
        told.append("projection")
        if config.projection in SUBSPACES:
            told += [name for name in ("energy", "directions", "epsilon") if getattr(config, name) is not None]
    if config.penalty_weight or config.projects_on_reference:
        told += ["reference", "penalty_weight", "reference_samples", "reference_every"]
    defaults = {field.name: field.default for field in fields(config)}
    told += [name for name in TOLD if getattr(config, name) != defaults[name]]
    return ", ".join(f"`{name}={getattr(config, name)}`" for name in told)


def _answers(scores: Mapping[str, float], step: int) -> str:
    shares = [f"{name.removeprefix('vqa_').replace('_', ' ')} {share:.1%}" for name, share in scores.items()]
    return (
        f"{', '.join(shares)} right after {step:,} steps (questions of the training's monitor; `vqa` is all of them)."
    )
