"""`AegisVLAPolicy`: LeRobot's contract, and nothing else.

Legend: `B` batch, `H` horizon (`chunk_size`), `A` action size, `S` state size.
"""

import json
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from lerobot.policies import PreTrainedPolicy
from lerobot.policies.common.flow_matching import sample_noise
from lerobot.policies.common.vla_utils import pad_vector
from lerobot.utils.constants import ACTION, OBS_STATE
from safetensors import safe_open
from torch import Tensor, nn

from aegis_policy.adapter_config import FROM_BACKBONE, Adapters
from aegis_policy.aegis import GaussianAnchor
from aegis_policy.answering import VLM
from aegis_policy.averaging import WeightAverages
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.demonstrations import meet_dataset
from aegis_policy.knowledge.controller import PenaltyController
from aegis_policy.knowledge.drift import watch_outputs
from aegis_policy.knowledge.protection import Protection
from aegis_policy.knowledge.reference import Seen
from aegis_policy.knowledge.retention import Retention
from aegis_policy.knowledge.sources import check_kept_anchor, find_anchor
from aegis_policy.model_card import tell_knowledge
from aegis_policy.monitor import Monitor, ask_on_first_rank, load_monitor
from aegis_policy.network.backbone import Prefix
from aegis_policy.network.checkpointing import checkpointable, recompute_in_backward
from aegis_policy.network.expert import masked_mse, mean_over_actions
from aegis_policy.network.flow import integrate, interpolate
from aegis_policy.network.prompt import load_processor
from aegis_policy.nonfinite import note_layers, require_finite
from aegis_policy.parameter_groups import parameter_groups
from aegis_policy.pretrained.start import load_backbone, make_expert
from aegis_policy.pretrained.take_over import order_cameras
from aegis_policy.processor_aegis_vla import vlm_inputs
from aegis_policy.progress import Progress, accept_former_names
from aegis_policy.real_time_chunking import RealTimeChunking

_SPEC = "anchor_spec"


class AegisVLAPolicy(RealTimeChunking, Adapters, PreTrainedPolicy):
    """A VLM and an action expert, trained so that the VLM keeps what it knew.

    State beside the weights: the anchor, the number of training steps, the seed of their noise and the scale of an
    adaptive penalty (all in the checkpoint; beside adapters all but the anchor); with `ema_decay` the averages of the
    weights (`averaging`); the micro-batches of the step so far; the queue of actions still to be carried out; the
    monitor's last scores and the step that they are of.
    """

    config_class = AegisVLAConfig
    name = "aegis_vla"

    def __init__(
        self, config: AegisVLAConfig, *, from_checkpoint: bool = False, adapters_follow: bool = False,
        dataset_meta: Any = None, **_: Any,
    ):  # fmt: skip
        """Builds the policy; weights come from `init_from` or `backbone` unless a checkpoint brings them.

        Where adapters of a checkpoint follow, the anchor is only looked for once they train on.
        """
        super().__init__(config)
        config.validate_features()
        meet_dataset(config, dataset_meta)
        if config.init_from and not from_checkpoint:
            order_cameras(config)
        self.backbone = load_backbone(config, weights=not from_checkpoint)
        self.expert = make_expert(config, self.backbone, weights=not from_checkpoint)
        if config.gradient_checkpointing:
            self.backbone.layers_to_recompute()  # refuses before work goes into an anchor
        self.init_rtc_processor()
        self.progress = Progress()
        self.register_load_state_dict_pre_hook(accept_former_names)
        self.penalty_controller = PenaltyController(config.penalty_bound) if config.penalty_bound else None
        self.averages = WeightAverages(config.ema_decay) if config.ema_decay else None
        self.register_state_dict_pre_hook(_hold_acting_weights)  # whoever saves the policy saves what acts
        self.anchor: GaussianAnchor | None = None
        self._made_retention: Retention | None = None
        self._compiled: int | None = None
        self._monitor: Monitor | None = None
        self._scores: dict[str, float] = {}
        self._asked_at = 0
        self._layer_distances: list[float] = []
        self._micro_batch = 0  # backward passes whose gradients add up to the next step
        if not (from_checkpoint or adapters_follow):
            self._set_anchor(self._find_anchor())
            self._make_retention()
        self.reset()

    # --- training ------------------------------------------------------------------------------------------------

    def forward(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, dict[str, float]]:
        """Flow-matching loss of a batch.

        In training mode with a projection that wants it, the backward pass of the loss also leaves the gradient of the
        distance to the reference, beside each protected parameter; a penalty and the loss of VQA samples are added
        where the configuration asks for them.

        Args:
            batch: From the policy's preprocessor; `action` (B, H, A) and, where chunks reach past an episode's end,
                `action_is_pad` (B, H).
            noise: (B, H, A), or as wide as actions are padded; drawn if None.
            time: (B,), drawn if None.
            reduction: `"mean"`, or `"none"` for a loss a sample (B,).

        Returns:
            The loss and numbers for the log; those of the projection are of the step before.

        Raises:
            RuntimeError: If the optimizer cannot keep the anchor, or `update` was not called after its last step.
            FloatingPointError: In training mode under `on_nonfinite=stop`, if the loss is nan or inf.
        """
        training = self.training and torch.is_grad_enabled()
        if training:
            self._require_optimizer()
        if training and self.config.probe_freq and not self._scores:
            # where the curve begins, and where a resumed one goes on
            self._ask()
        self.hold_acting_weights(not training)
        layers: list[torch.nn.Module] = []
        if training and self.config.gradient_checkpointing:
            expert = [] if self.config.compile_model else checkpointable(self.expert)  # compiled code stays as it is
            layers = [*self.backbone.layers_to_recompute(), *expert]
        with recompute_in_backward(layers):
            return self._loss(batch, noise, time, reduction=reduction, training=training)

    def _loss(
        self, batch: dict[str, Tensor], noise: Tensor | None, time: Tensor | None, *, reduction: str, training: bool
    ) -> tuple[Tensor, dict[str, float]]:
        size = batch[ACTION].shape[-1]
        action = pad_vector(batch[ACTION], self.config.action_size)
        if noise is None or time is None:
            drawn_noise, drawn_time = self.progress.draw(action, micro_batch=self._micro_batch if training else None)
            noise, time = drawn_noise if noise is None else noise, drawn_time if time is None else time
        noisy, target = interpolate(action, noise, time)
        inputs = vlm_inputs(batch)
        with watch_outputs(self.backbone.layers()) as outputs:
            prefix = self.expert.read(self._encode(inputs))
        distances = self._retention.distances(outputs, prefix.mask, training=training)
        velocity = self._field()(noisy, time, state=batch.get(OBS_STATE), prefix=prefix)
        is_pad = batch.get("action_is_pad")
        losses = masked_mse(velocity[..., :size], target[..., :size], is_pad=is_pad)  # (B,)
        added: dict[str, Tensor] = {}
        if training:
            seen = Seen(
                batch, inputs, outputs, prefix.mask, int(self.progress.training_steps), distances, self._micro_batch
            )
            added = self._retention.added_losses(seen, seed=int(self.progress.noise_seed))
        metrics = self._metrics(losses, distances, added)
        if training and self.config.loss_temperature is not None:
            losses = losses * torch.exp(-losses.detach() / self.config.loss_temperature)
        loss = losses if reduction == "none" else mean_over_actions(losses, is_pad=is_pad, over_ranks=training)
        loss = loss + sum(added.values())
        if training:
            loss = require_finite(
                loss,
                {name: metrics[name] for name in ("flow_loss", *added)},
                layers=dict(zip(self.backbone.layers(), self._layer_distances, strict=False)),
                batch=batch,
                step=int(self.progress.training_steps),
                on_nonfinite=self.config.on_nonfinite,
            )
            self._retention.leave_anchor_gradient(loss, seen, self._encode)
            note_layers(loss, self)
            loss.register_hook(self._count_micro_batch)
        return loss, metrics

    def _require_optimizer(self) -> None:
        if self._protection is not None:
            self._protection.require_attached()
        if self.averages is not None:
            self.averages.require_attached()

    def _count_micro_batch(self, _: Tensor) -> None:
        self._micro_batch += 1

    def _encode(self, inputs: dict[str, Tensor]) -> Prefix:
        learns = self.config.knowledge not in ("frozen", "stop_gradient")
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return self.backbone.encode(inputs, keep_attended=self.config.own_keys_values)

    def _field(self) -> nn.Module:
        """The expert; compiled if it is to be, once for each that peft may have put in its place."""
        if self.config.compile_model and self._compiled != id(self.expert):
            self.expert.compile(mode=self.config.compile_mode)
            self._compiled = id(self.expert)
        return self.expert

    def _metrics(self, losses: Tensor, distances: Tensor | None, added: Mapping[str, Tensor]) -> dict[str, float]:
        values = [losses.detach().float().mean(), *[term.detach().float() for term in added.values()]]
        names = [*added]
        if self.penalty_controller is not None:
            values.append(self.penalty_controller.scale)
            names.append("penalty_scale")
        if distances is not None:
            values += [distances.detach().sum(), *distances.detach()]
        mean, *numbers = torch.stack(values).tolist()  # all at once, for each waits for the device
        metrics = {"flow_loss": mean, **dict(zip(names, numbers, strict=False))}
        if distances is not None:
            total, *self._layer_distances = numbers[len(names) :]
            metrics["anchor_distance"] = total
            metrics |= {f"anchor_distance_{i:02d}": d for i, d in enumerate(self._layer_distances)}
        if self._protection is not None:
            metrics |= self._protection.report()
        return metrics | self._scores

    def get_optim_params(self) -> list[dict[str, Any]]:
        """One group a protected layer, one or two for what else of the backbone learns, one for the expert."""
        if self.config.use_dora and not self._adapted:
            raise ValueError(
                "--policy.use_dora makes a DoRA of the LoRA of --peft.*; there is none. Give --peft.method_type=LORA."
            )
        return parameter_groups(
            self.config,
            self.backbone,
            self.parameters(),
            reading=[p for name, p in self.named_parameters() if ".own_keys_values." in name],
            protection=self._protection,
            averages=self.averages,
        )

    def update(self) -> None:
        """Counts the step and asks the monitor's questions when it is time; lerobot-train calls it after each step."""
        self.progress.training_steps.add_(1)
        self._micro_batch = 0
        if self._protection is not None:
            self._protection.count_step()
        frequency = self.config.probe_freq
        if frequency and int(self.progress.training_steps) % frequency == 0:
            self._ask()

    def _ask(self) -> None:
        self._scores = ask_on_first_rank(self.probe, self.backbone)
        self._asked_at = int(self.progress.training_steps)

    def probe(self) -> dict[str, float]:
        """What the backbone still knows, now: the monitor's scores, also in the log of the steps that follow."""
        if self._monitor is None:
            self._monitor = load_monitor(self.config.probe_monitor, count=self.config.probe_count)
        step = int(self.progress.training_steps)
        self.hold_acting_weights(True)
        # Without autocast: the first curve point is asked for inside the trainer's, all others outside of it.
        with torch.random.fork_rng(), torch.autocast(self.progress.noise_seed.device.type, enabled=False):
            self._scores = self._monitor(self.vlm, step)
        record = {
            "step": step,
            "scores": self._scores,
            "anchor_distance": dict(zip(self.backbone.layers(), self._layer_distances, strict=False)),
            "layers": {} if self._protection is None else self._protection.layer_report(),
        }
        logging.info("aegis %s", json.dumps(record))
        return self._scores

    @property
    def vlm(self) -> VLM:
        """The backbone as it is now, to be asked questions."""
        config = self.config
        processor = load_processor(
            config.backbone, revision=config.backbone_revision, image_options=config.image_options
        )
        return VLM(self.backbone.vlm, processor)

    # --- acting --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets the actions that were still to be carried out."""
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def hold_acting_weights(self, acting: bool) -> None:
        """Has the weights be those that act, or again those that learn.

        They differ under `ema_decay` (averages act) and between two projections (`projection_every`).
        """
        if self.averages is not None:
            self.averages.put_in_force(acting)
        if self._made_retention is not None and self._made_retention.protection is not None:
            self._made_retention.protection.put_in_force(acting)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None, **rtc: Any) -> Tensor:
        """Actions for the next H ticks, normalised, (B, H, A).

        Args:
            batch: One observation a sample, from the policy's preprocessor.
            noise: (B, H, A), or as wide as actions are padded; drawn if None.
            **rtc: `inference_delay`, `prev_chunk_left_over`, `execution_horizon` of LeRobot's real-time chunking.
        """
        self.eval()
        self.hold_acting_weights(True)
        prefix = self.expert.read(self._encode(vlm_inputs(batch)))
        size = (len(prefix.mask), self.config.chunk_size, self.config.action_size)
        noise = sample_noise(size, prefix.mask.device) if noise is None else noise
        if self.config.sampler == "euler":
            rtc |= self._guidance(rtc.get("prev_chunk_left_over"))

        field = self._field()

        def velocity(noisy: Tensor, time: Tensor) -> Tensor:
            return field(noisy, time, state=batch.get(OBS_STATE), prefix=prefix)

        chunk = integrate(velocity, noise, steps=self.config.num_inference_steps, sampler=self.config.sampler, **rtc)
        return chunk[..., : self.config.action_feature.shape[0]]

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None, **_: Any) -> Tensor:
        """The next action (B, A), from the queue or a new chunk.

        Raises:
            RuntimeError: Under real-time chunking, which keeps a queue of its own.
        """
        if self.rtc_enabled:
            raise RuntimeError("Real-time chunking calls predict_action_chunk; select_action has no part in it.")
        if not self._queue:
            chunk = self.predict_action_chunk(batch, noise)
            self._queue.extend(chunk[:, : self.config.n_action_steps].transpose(0, 1))
        return self._queue.popleft()

    # --- anchor and checkpoints ----------------------------------------------------------------------------------

    def _find_anchor(self, *, trained: bool = False) -> GaussianAnchor | None:
        # An anchor is that of the pre-trained backbone alone: one that has learned or got adapters is loaded once more.
        again = trained or self._adapted
        return find_anchor(self.config, lambda: load_backbone(self.config) if again else self.backbone)

    def _set_anchor(self, anchor: GaussianAnchor | None) -> None:
        device = self.progress.noise_seed.device
        self.anchor = None if anchor is None else anchor.to(device)
        if anchor is not None:
            # The names and shapes of its tensors travel too, so that loading can make room for them.
            spec = json.dumps(anchor.spec()).encode()
            self.register_buffer(_SPEC, torch.frombuffer(bytearray(spec), dtype=torch.uint8).to(device))

    def _make_retention(self) -> Retention:
        parts = (self.config, self.backbone, self.anchor, self.vlm.processor, self.penalty_controller)
        self._made_retention = Retention(*parts, adapted=self._adapted)
        return self._made_retention

    @property
    def _retention(self) -> Retention:
        """Made with the policy, and anew when adapters have come into it since."""
        made = self._made_retention
        if made is not None and made.adapted == self._adapted:
            return made
        if made is None and self.anchor is None:
            self._set_anchor(self._find_anchor())
        return self._make_retention()

    @property
    def _protection(self) -> Protection | None:
        return self._retention.protection

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **kwargs: Any) -> "AegisVLAPolicy":
        """Loads a checkpoint with its anchor; no other file is needed."""
        if str(pretrained_name_or_path) == FROM_BACKBONE:
            return cls(kwargs["config"], adapters_follow=True, dataset_meta=kwargs.get("dataset_meta"))
        return super().from_pretrained(pretrained_name_or_path, from_checkpoint=True, **kwargs)

    @classmethod
    def _load_as_safetensor(
        cls, model: "AegisVLAPolicy", model_file: str, map_location: str, strict: bool
    ) -> "AegisVLAPolicy":
        with safe_open(model_file, framework="pt") as checkpoint:
            if _SPEC in checkpoint.keys():  # noqa: SIM118  a safetensors handle is no mapping
                spec = json.loads(bytes(checkpoint.get_tensor(_SPEC).tolist()))
                model._set_anchor(GaussianAnchor.from_spec(spec))
        model = super()._load_as_safetensor(model, model_file, map_location, strict)
        if model.anchor is not None:
            check_kept_anchor(model.config, model.anchor)
        elif model.config.needs_anchor:
            model._set_anchor(model._find_anchor(trained=True))
        model._make_retention()
        return model

    # --- the hub -------------------------------------------------------------------------------------------------

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """LeRobot's card, and in it what the policy still knows."""
        card = super().generate_model_card(*args, **kwargs)
        return tell_knowledge(card, self.config, self._scores, step=self._asked_at)


def _hold_acting_weights(policy: AegisVLAPolicy, prefix: str, keep_vars: bool) -> None:
    policy.hold_acting_weights(True)
