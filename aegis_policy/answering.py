"""A VLM that is asked questions about images: what probes and monitors talk to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aegis_policy.aegis import fingerprint
from aegis_policy.likelihood import Likelihood, continuation_likelihoods
from aegis_policy.network.backbone import Backbone
from aegis_policy.network.prompt import encode_prompts, load_processor
from aegis_policy.pretrained.families import FAMILIES
from aegis_policy.pretrained.start import load_backbone
from aegis_policy.vqa import VQASample


@dataclass(frozen=True)
class VLM:
    """A model and its processor.

    Attributes:
        model: An image-text-to-text model of transformers (a `PreTrainedModel`), on whatever device.
        processor: Its processor.
    """

    model: Any
    processor: Any

    @property
    def fingerprint(self) -> str:
        """Names the model's weights: SHA-256 as in `aegis_policy.aegis.fingerprint`."""
        return fingerprint(self.model.state_dict())

    @torch.no_grad()
    def answer(self, samples: Sequence[VQASample], *, batch_size: int = 64, max_new_tokens: int = 8) -> list[str]:
        """Greedy answers, in the order of `samples`; the model is left in the mode in which it came.

        Args:
            samples: Questions with their images; the accepted answers are not looked at.
            batch_size: Questions a forward pass.
            max_new_tokens: Longest answer, in tokens.
        """
        was_training = self.model.training
        self.model.eval()
        answers: list[str] = []
        try:
            for start in range(0, len(samples), batch_size):
                answers += self._answer_batch(samples[start : start + batch_size], max_new_tokens)
        finally:
            self.model.train(was_training)
        return answers

    def likelihoods(self, texts: Sequence[tuple[str, str]], *, batch_size: int = 32) -> list[Likelihood]:
        """How likely continuations are to the language model, without images; see `aegis_policy.likelihood`."""
        return continuation_likelihoods(self.model, self.processor.tokenizer, texts, batch_size=batch_size)

    def _answer_batch(self, samples: Sequence[VQASample], max_new_tokens: int) -> list[str]:
        inputs = encode_prompts(
            self.processor, [s.images for s in samples], [s.question for s in samples], padding_side="left"
        )
        inputs = {k: v.to(self.model.device) for k, v in inputs.items()}
        tokens = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in texts]


def load_vlm(path: str, *, device: str = "cpu", adapters: bool = True) -> VLM:
    """The VLM in a checkpoint of `aegis_vla`, in one of a policy that `init_from` reads (pi0, pi05), in a transformers
    folder, on the hub, or the embedded one (`"nano"`).

    Args:
        path: Which one.
        device: Where it goes.
        adapters: Whether a checkpoint's adapters (`--peft.*`) are switched on.

    Raises:
        ValueError: If there is no such model, or no adapters to be switched off.
    """
    kind = _policy_type(path)
    if kind == "aegis_vla":
        return _policy_vlm(path, device, adapters)
    if not adapters:
        raise ValueError(f"{path} has no adapters that could be switched off: it was not trained with --peft.*.")
    if kind in FAMILIES:
        return _foreign_vlm(path, device)
    backbone = Backbone.load(path).to(device).eval()
    return VLM(backbone.vlm, load_processor(path))


def _policy_vlm(path: str, device: str, adapters: bool) -> VLM:
    from lerobot.configs import PreTrainedConfig

    from aegis_policy.modeling_aegis_vla import AegisVLAPolicy

    config = PreTrainedConfig.from_pretrained(path)
    config.device = device
    if not config.use_peft:
        if not adapters:
            raise ValueError(f"{path} has no adapters that could be switched off: it was not trained with --peft.*.")
        return AegisVLAPolicy.from_pretrained(path, config=config).vlm
    from peft import PeftConfig, PeftModel

    base = AegisVLAPolicy.from_pretrained(PeftConfig.from_pretrained(path).base_model_name_or_path, config=config)
    wrapped: Any = PeftModel.from_pretrained(base, path)  # puts the adapters into `base` itself
    if not adapters:
        wrapped.base_model.disable_adapter_layers()
    base.to(device)
    return base.vlm


def _foreign_vlm(path: str, device: str) -> VLM:
    from aegis_policy.configuration_aegis_vla import AegisVLAConfig

    config = AegisVLAConfig(init_from=path, device=device)
    return VLM(load_backbone(config).to(device).eval().vlm, load_processor(config.backbone))


def _policy_type(path: str) -> str | None:
    """LeRobot's name for the policy in a folder; None where there is none."""
    config = Path(path) / "config.json"
    return json.loads(config.read_text()).get("type") if config.is_file() else None
