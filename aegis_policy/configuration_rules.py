"""What a configuration of `aegis_vla` must keep to, told before any work begins: the rule, the value, the remedy."""

from typing import TYPE_CHECKING

from lerobot.configs import FeatureType

from aegis_policy.aegis import ON_NONFINITE, PROJECTIONS, SUBSPACES
from aegis_policy.demonstrations import CHOOSE_CAMERAS
from aegis_policy.knowledge.reference import REFERENCES
from aegis_policy.network.flow import SAMPLERS

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis_vla import AegisVLAConfig

CHOICES: dict[str, tuple[str, ...]] = {
    "time_conditioning": ("concat", "adaptive_norm"),
    "prompt_form": ("processor", "pi0", "pi05"),
    "knowledge": ("aegis", "none", "stop_gradient", "frozen"),
    "projection": PROJECTIONS,
    "reference": REFERENCES,
    "sampler": SAMPLERS,
    "dtype": ("float32", "bfloat16", "float16"),
    "on_nonfinite": ON_NONFINITE,
    "compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}
POSITIVE = (
    "num_inference_steps",
    "expert_width_ratio",
    "expert_hidden_size",
    "expert_intermediate_size",
    "padded_action_size",
    "prompt_max_tokens",
    "num_vlm_layers",
    "optimizer_lr",
    "anchor_samples",
    "cotraining_samples",
    "reference_every",
    "projection_every",
    "probe_count",
)


def check_options(config: "AegisVLAConfig") -> None:
    """Checks what can be checked before data are known; the recipe must have been filled in.

    Raises:
        ValueError: If an option is out of its range, or two contradict each other.
    """
    for name, choices in CHOICES.items():
        if (value := getattr(config, name)) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}: got {value!r}.")
    for name in POSITIVE:
        if (value := getattr(config, name)) is not None and value <= 0:
            raise ValueError(f"{name} must be positive: got {value}.")
    _check_network(config)
    _check_training(config)
    _check_subspace(config)
    _check_reference(config)


def check_features(config: "AegisVLAConfig") -> None:
    """Checks that the data has what the policy needs.

    Raises:
        ValueError: Without an image or an action feature, or with one of a shape that the policy cannot read.
    """
    if not config.image_features:
        raise ValueError(
            "aegis_vla looks at the world through a VLM and needs at least one image feature "
            f"(observation.images.*); the data offers {sorted(config.input_features or {})}."
        )
    if config.action_feature is None:
        raise ValueError(
            f"aegis_vla needs an `action` feature; the data offers {sorted(config.output_features or {})}."
        )
    if config.action_size < config.action_feature.shape[0]:
        raise ValueError(
            f"Actions are padded to padded_action_size={config.padded_action_size} and must not be larger; those of "
            f"the data have {config.action_feature.shape[0]} numbers. Start from a policy made for as many."
        )
    if config.prompt_form != "processor" and config.robot_state_feature is None:
        raise ValueError(
            f"A policy of prompt_form={config.prompt_form} reads the robot's state; the data offer "
            f"{sorted(config.input_features or {})}. Record observation.state, or start without init_from."
        )
    sizes = {key: f.shape for key, f in config.image_features.items() if f.type is FeatureType.VISUAL}
    rgb = [key for key, shape in sizes.items() if len(shape) == 3 and 3 in (shape[0], shape[2])]
    if len(rgb) < len(sizes):
        raise ValueError(
            f"Image features must be RGB, of shape (3, height, width): got {sizes}. Leave a depth camera out. "
            + CHOOSE_CAMERAS % next(iter(rgb), "observation.images.front")
        )


def _check_network(config: "AegisVLAConfig") -> None:
    if config.n_obs_steps != 1:
        raise ValueError(f"aegis_vla looks at the present alone: got n_obs_steps={config.n_obs_steps}. Leave it at 1.")
    if not 1 <= config.n_action_steps <= config.chunk_size:
        raise ValueError(
            f"n_action_steps must lie between 1 and chunk_size: got {config.n_action_steps} of a chunk of "
            f"{config.chunk_size}."
        )
    if config.image_options and config.prompt_form != "processor":
        raise ValueError(
            f"prompt_form={config.prompt_form} prepares images as openpi does and asks no image processor: leave out "
            f"image_options={config.image_options}."
        )
    if config.init_from and config.num_vlm_layers is not None:
        raise ValueError(
            f"The expert of init_from reads every layer of its VLM: num_vlm_layers={config.num_vlm_layers} would cut "
            "off what it has learned to read. Leave it out, or start a new expert with --policy.backbone."
        )


def _check_training(config: "AegisVLAConfig") -> None:
    if config.probe_freq < 0:
        raise ValueError(f"probe_freq must be a number of steps, or 0 for never: got {config.probe_freq}.")
    for name in ("optimizer_backbone_lr", "optimizer_vision_lr"):
        if (value := getattr(config, name)) is not None and value < 0:
            raise ValueError(f"{name} must not be negative: got {value}. 0 lets that part stay as it is.")
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        raise ValueError(
            f"ema_decay is the share of the average that stays in a step, in (0, 1): got {config.ema_decay}. For "
            "example 0.999; null keeps no average."
        )
    if config.loss_temperature is not None and config.loss_temperature <= 0:
        raise ValueError(f"loss_temperature must be positive, or null: got {config.loss_temperature}.")
    if not 0 <= config.cotraining_share < 1:
        raise ValueError(f"cotraining_share is a share of all samples, in [0, 1): got {config.cotraining_share}.")
    if config.cotraining_share and config.knowledge == "frozen":
        raise ValueError(
            "cotraining_share trains the backbone on VQA samples, knowledge=frozen keeps it as it is. Choose one; "
            "knowledge=stop_gradient lets VQA samples alone train it."
        )


def _check_subspace(config: "AegisVLAConfig") -> None:
    closes = {name: getattr(config, name) for name in ("energy", "directions", "epsilon")}
    if sum(value is not None for value in closes.values()) != 1:
        raise ValueError(
            "Exactly one of energy, directions (hard) and epsilon (soft) says what a subspace closes: got "
            f"{', '.join(f'{name}={value}' for name, value in closes.items())}. Set the others to null, for example "
            "--policy.energy=null --policy.directions=0.3."
        )
    if config.epsilon is not None and config.epsilon <= 0:
        raise ValueError(f"epsilon must be positive: got {config.epsilon}. Larger leaves more open.")
    for name in ("energy", "directions"):
        if closes[name] is not None and not 0 < closes[name] <= 1:
            raise ValueError(f"{name} is a share and must lie in (0, 1]: got {closes[name]}.")
    if config.anchor_unit_inputs is not None and (config.knowledge != "aegis" or config.projection not in SUBSPACES):
        raise ValueError(
            f"anchor_unit_inputs={config.anchor_unit_inputs} shapes subspaces, and knowledge={config.knowledge} with "
            f"projection={config.projection} has none. Leave it out."
        )
    if config.projection_every > 1:
        if config.knowledge != "aegis" or config.projection != "subspace":
            raise ValueError(
                f"projection_every={config.projection_every} projects what several steps come to, which only a "
                f"subspace allows; knowledge={config.knowledge} with projection={config.projection} has none. Leave it "
                "at 1."
            )
        if config.ema_decay is not None:
            raise ValueError(
                f"ema_decay={config.ema_decay} would average weights that are not projected yet under "
                f"projection_every={config.projection_every}. Choose one of them."
            )


def _check_reference(config: "AegisVLAConfig") -> None:
    for name in ("penalty_weight", "reference_samples"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative: got {getattr(config, name)}. 0 switches it off.")
    if config.penalty_weight and config.knowledge in ("frozen", "stop_gradient"):
        raise ValueError(
            f"penalty_weight pulls a backbone back that learns from actions; with knowledge={config.knowledge} it "
            "does not. Leave penalty_weight at 0, or use knowledge=none or aegis."
        )
    if config.reference != "moments" and not (config.penalty_weight or config.projects_on_reference):
        raise ValueError(
            f"Nothing would use reference={config.reference}: knowledge={config.knowledge} with "
            f"projection={config.projection} does not project on it and penalty_weight is 0. Give a penalty_weight, "
            "or projection=gradient, first_moment or update."
        )
    if config.reference_every != 1 and not (config.penalty_weight or config.projects_on_reference):
        raise ValueError(
            f"reference_every={config.reference_every} spaces looks at a reference that nothing uses here: "
            f"knowledge={config.knowledge} with projection={config.projection} does not project on it and "
            "penalty_weight is 0. Leave it at 1."
        )
    if config.reference == "answers" and not config.reference_questions:
        raise ValueError("reference=answers asks reference_questions: give at least one.")
    if config.penalty_bound is not None and not (config.penalty_bound > 0 and config.penalty_weight):
        raise ValueError(
            f"penalty_bound={config.penalty_bound} bounds the distance that penalty_weight={config.penalty_weight} "
            "holds back: both must be positive. penalty_weight is where the weight begins, for example 1."
        )
