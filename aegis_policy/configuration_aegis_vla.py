"""Configuration of `aegis_vla`: what the policy is, what it must not forget, how it is trained."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import CosineDecayWithWarmupSchedulerConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from aegis_policy.aegis import SUBSPACES
from aegis_policy.configuration_rules import check_features, check_options
from aegis_policy.knowledge.recipe import Recipe, fill_in, recipe_of
from aegis_policy.knowledge.reference import ANCHORED
from aegis_policy.optimizer_aegis_adamw import AegisAdamWConfig
from aegis_policy.pretrained.take_over import take_over

GENERIC_QUESTIONS = (
    "What is in the picture?",
    "How many objects are there?",
    "What colour is the object?",
    "What shape is the object?",
    "Where is the object?",
    "Is there anything on the table?",
)


@PreTrainedConfig.register_subclass("aegis_vla")
@dataclass
class AegisVLAConfig(PreTrainedConfig):
    """A VLM backbone, a flow-matching action expert, and the way in which the backbone keeps its knowledge."""

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,  # the VLM's own processor normalises images
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    # "nano" (ships in this package), a folder, or a hub id of an image-text-to-text model with safetensors.
    backbone: str = "nano"
    # Commit, tag or branch of a hub id.
    backbone_revision: str | None = None
    # What the backbone's image processor is to do otherwise than its folder says, in its own words: how many tokens a
    # camera costs. {"do_image_splitting": false} (SmolVLM, Idefics 3), {"max_patches": 1} (InternVL),
    # {"size": {"shortest_edge": 50176, "longest_edge": 50176}} (Qwen-VL, in pixels). None: as the folder says.
    image_options: dict[str, Any] | None = None
    # Language layers, from the input on, that the prefix passes through, the expert reads and training changes (as in
    # SmolVLA); None: all. The others stay as they were pre-trained, for answering: cheaper steps, not less memory.
    num_vlm_layers: int | None = None
    # Start from another policy: folder or hub id of a LeRobot checkpoint of type pi0 or pi05. Its VLM and its expert
    # are loaded and what its configuration decides is taken over; `backbone` then only names the VLM's processor, by
    # default the one whose tokenizer the checkpoint uses.
    init_from: str | None = None
    # Commit, tag or branch of a hub id.
    init_from_revision: str | None = None
    # The VLM's transformers configuration where it is not `backbone`'s: filled in by init_from, so that what is saved
    # rebuilds without it.
    backbone_config: dict[str, Any] | None = None
    # "float32", or "bfloat16" or "float16" for autocast around float32 weights while training; lerobot-train scales the
    # loss under float16, which needs a GPU. Probing and building an anchor stay in float32, and so does acting where
    # the caller does not autocast: lerobot-train does while it evaluates, lerobot-eval under --policy.use_amp.
    dtype: str = "float32"
    # Whether transformer layers of VLM and expert are computed again in the backward pass, in place of keeping what
    # they computed: less memory, a forward pass more for each backward pass.
    gradient_checkpointing: bool = False

    # Of the data that it was trained on, filled in by training: what the numbers of action and state are called (by the
    # former LeRobot orders a robot's joints), and actions a second.
    action_feature_names: list[str] | None = None
    state_feature_names: list[str] | None = None
    demonstrated_fps: int | None = None

    # Actions predicted at once, and how many of them are carried out before the next look.
    chunk_size: int = 16
    n_action_steps: int = 8
    # Width of the action expert over that of the language model.
    expert_width_ratio: float = 0.75
    # Its width, and the width inside its MLPs, in their own numbers; None: by the ratio.
    expert_hidden_size: int | None = None
    expert_intermediate_size: int | None = None
    # Whether the expert reads, beside the VLM's keys and values, some of its own, from maps that begin at zero: it can
    # then be served without bending the VLM's own (aegis_policy/network/own_keys_values.py).
    own_keys_values: bool = False
    # How the expert hears of flow time: "concat" beside each action (pi0), "adaptive_norm" in its norms (pi0.5).
    time_conditioning: str = "concat"
    # Actions are padded with zeros to this size; None: not at all.
    padded_action_size: int | None = None
    # What the VLM reads: "processor" is its own processor's form; "pi0" has padded images and ends the instruction with
    # a newline; "pi05" has the state, in 256 steps, as text of the prompt.
    prompt_form: str = "processor"
    # Longest text of the last two, in tokens.
    prompt_max_tokens: int = 48
    # Times at which the flow is evaluated for one chunk, and by which integrator.
    num_inference_steps: int = 10
    sampler: str = "euler"
    # Has torch compile the action expert, for training and acting, and how. The VLM stays as it is: what watches its
    # layers comes and goes with each step, and compiled code does not look for it.
    compile_model: bool = False
    compile_mode: str = "default"
    # Real-time chunking for asynchronous rollouts (LeRobot's); None without.
    rtc_config: RTCConfig | None = None

    # "aegis": the backbone learns, but no step may undo the anchor. "none": it learns unprotected. "stop_gradient": the
    # action loss ends at the expert. "frozen": the backbone is no part of the training.
    knowledge: str = "aegis"
    # What AEGIS projects. None: the recipe (aegis_policy/knowledge/recipe.py), a subspace and feature distillation
    # together, but for the fields below that are given. A name does what it says, and nothing is added to the loss:
    # "subspace" keeps each weight's step off the directions that the anchor's inputs use;
    # "gradient" is arXiv 2604.16067 to the letter; "update" the same on the step that Adam really takes;
    # "first_moment" lets the projected gradient into Adam's first moment only (arXiv 2604.22407); "subspace_gradient"
    # keeps the gradient, not the step, off those directions.
    projection: str | None = None
    # Subspace: steps that are projected together, as the sum they have come to. Cheaper where weights are large beside
    # the batch, for one more copy of them (aegis_policy/aegis/accumulation.py); what acts and is saved is projected.
    projection_every: int = 1
    # Subspace, hard form: share of the inputs' energy whose directions are closed, in (0, 1]. None: the recipe's, or
    # 0.99 for a subspace alone.
    energy: float | None = None
    # Subspace, hard form, in place of energy: share of each weight's input directions that are closed, in (0, 1]. It
    # means the same on a wide backbone as on a narrow one, which a share of the energy does not. None: the recipe's.
    directions: float | None = None
    # Subspace, soft form, in place of both: P = (I + Sigma / epsilon)^-1, epsilon in units of Sigma's mean eigenvalue.
    epsilon: float | None = None
    # Whether vision tower and projector learn too (False: language layers only).
    tune_vision: bool = True

    # What else counts as knowledge (aegis_policy/knowledge/reference.py): "moments" of the anchor, "relative_moments",
    # "batch_moments", "kind_moments", "features" or "answers" of the frozen backbone on the robot's images, pre-trained
    # "weights". Its gradient is what "gradient", "first_moment" and "update" project on ...
    reference: str | None = None
    # ... and what this weight adds to the loss, under any projection and under knowledge=none. 0: nothing is added.
    # None (as in the others of the reference): the recipe's, or without it moments, 0, all samples, every step.
    penalty_weight: float | None = None
    # Adapts that weight while training, so that the reference's distance stays below this bound. None: it is fixed.
    penalty_bound: float | None = None
    # Samples of the batch that the reference looks at, its cost; 0: all.
    reference_samples: int | None = None
    # Steps between two looks at it. In between, a projection goes on with the gradient it had; a penalty is left out,
    # and weighs so many times more when it comes.
    reference_every: int | None = None
    # Which of these were left out and which recipe they then got: filled in, for a checkpoint whose training goes on
    # under other options.
    recipe_record: dict[str, Any] | None = None
    # What reference "answers" asks about the robot's images.
    reference_questions: tuple[str, ...] = GENERIC_QUESTIONS
    # Samples weigh exp(-loss / temperature): those that ask for large changes count less (ConSFT). None: all the same.
    loss_temperature: float | None = None
    # Share of VQA samples in robot and VQA samples together, in [0, 1), from `cotraining_samples` of `anchor_source`.
    cotraining_share: float = 0.0
    cotraining_samples: int = 4000

    # Anchor file of `aegis-anchor`. None: the one beside the backbone, or else one built from `anchor_source` on start.
    # A checkpoint goes on with the anchor that it has, whatever is said here.
    anchor_path: str | None = None
    # VQA source (entry point `aegis_policy.vqa_sources`) and number of samples for an anchor built on start.
    anchor_source: str = "nano_scenes"
    anchor_samples: int = 3000
    # Whether each token counts the same in the anchor's subspaces, however large its activations are: where a few
    # tokens of a language model dwarf all others, their directions would else be all that is closed. None: as the file
    # has it; true for an anchor built on start.
    anchor_unit_inputs: bool | None = None

    # Ask the monitor's questions every so many training steps (0: never), and how many a question family.
    probe_freq: int = 0
    probe_count: int = 50
    # Monitor (entry point `aegis_policy.monitors`).
    probe_monitor: str = "vqa"

    # Training preset.
    optimizer_lr: float = 1e-3
    # Learning rate of the backbone; None: the same.
    optimizer_backbone_lr: float | None = None
    # Learning rate of its vision tower and projector; None: the backbone's.
    optimizer_vision_lr: float | None = None
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 1e-10
    optimizer_grad_clip_norm: float = 1.0
    # nan or inf in the loss or in a gradient: "stop" the training and name the layer, or "skip" the step. Neither
    # writes anything of it. What a loss scaler finds under float16 is no failure: it skips the step, lowers the scale.
    on_nonfinite: str = "stop"
    scheduler_warmup_steps: int = 1_000
    scheduler_decay_steps: int = 30_000
    scheduler_decay_lr: float = 1e-5
    # Average of the weights that learn (EMA), with which the policy acts and is saved; 0.999 looks back over about a
    # thousand steps. A resumed run keeps the value it began with. None: the last weights.
    ema_decay: float | None = None
    # Makes the LoRA of LeRobot's --peft.* a DoRA (arXiv 2402.09353), for which --peft.* has no option.
    use_dora: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from and self.backbone_config is None:  # else a policy has been built from it already
            take_over(self)
        fill_in(self)
        check_options(self)

    @property
    def action_size(self) -> int:
        """Numbers of an action that the expert handles, padding included."""
        assert self.action_feature is not None, "features have been validated"
        return self.padded_action_size or self.action_feature.shape[0]

    @property
    def state_size(self) -> int:
        """Numbers of the expert's state token; 0 where it has none."""
        feature = self.robot_state_feature
        return 0 if feature is None or self.prompt_form == "pi05" else feature.shape[0]

    @property
    def recipe(self) -> Recipe:
        """How knowledge is kept."""
        return recipe_of(self)

    @property
    def needs_anchor(self) -> bool:
        """Whether this training cannot go without an anchor."""
        recipe = self.recipe
        return self.knowledge == "aegis" or (recipe.penalty_weight > 0 and recipe.reference in ANCHORED)

    @property
    def projects_on_reference(self) -> bool:
        """Whether each step's projection wants the reference's gradient."""
        return self.knowledge == "aegis" and self.projection not in SUBSPACES

    def validate_features(self) -> None:
        """Checks that the data has what the policy needs.

        Raises:
            ValueError: Without an image or an action feature, or with one of a shape that the policy cannot read.
        """
        check_features(self)

    def get_optimizer_preset(self) -> AegisAdamWConfig:
        """AdamW that keeps each protected layer's anchor."""
        return AegisAdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
            projection=self.recipe.projection,
            projection_every=self.projection_every,
            on_nonfinite=self.on_nonfinite,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Linear warm-up, then cosine decay (LeRobot shortens both for short runs)."""
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )

    @property
    def observation_delta_indices(self) -> None:
        """One observation: the present."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The chunk, beginning with the action taken at the observation."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None
