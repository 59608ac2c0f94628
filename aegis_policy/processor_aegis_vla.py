"""Observations -> what the VLM reads, through the VLM's own processor; actions back to the robot's units."""

from dataclasses import dataclass
from typing import Any

from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import PolicyAction, TransitionKey
from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor import (
    ObservationProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStep,
    ProcessorStepRegistry,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from torch import Tensor

from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.network.prompt import encode_padded, encode_prompts, load_processor, to_uint8
from aegis_policy.pretrained.take_over import checkpoint_of

VLM_INPUT = "observation.vlm."  # prefix of the batch keys that hold the processor's tensors


@dataclass
@ProcessorStepRegistry.register(name="aegis_vlm_inputs")
class VLMInputsProcessorStep(ObservationProcessorStep):
    """Adds the VLM's inputs for all cameras and the instruction under `observation.vlm.*`.

    Attributes:
        backbone: Whose processor to use.
        image_keys: Cameras in the order in which the prompt shows them.
        revision: Of a hub id.
        image_options: As in `AegisVLAConfig`.
        padded: Whether images are padded and texts taken as they come (`encode_padded`).
        max_tokens: Longest text of that form.
    """

    backbone: str
    image_keys: list[str]
    revision: str | None = None
    padded: bool = False
    max_tokens: int = 48
    image_options: dict[str, Any] | None = None

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Runs the processor on the batch.

        Raises:
            ValueError: If a camera or the instruction is missing.
        """
        missing = [key for key in self.image_keys if key not in observation]
        if missing:
            raise ValueError(
                f"The policy was built for the cameras {self.image_keys}; the observation lacks {missing} and has "
                f"{sorted(k for k in observation if 'image' in k)}. Rename cameras with --rename_map or "
                "train with the cameras that the robot has."
            )
        images = [observation[key] for key in self.image_keys]
        processor = load_processor(self.backbone, revision=self.revision, image_options=self.image_options)
        texts = self._instructions(len(images[0]))
        if self.padded:
            inputs = encode_padded(processor, [one.cpu() for one in images], texts, max_tokens=self.max_tokens)
        else:
            views = [list(one) for one in zip(*map(to_uint8, images), strict=True)]
            inputs = encode_prompts(processor, views, texts)
        device = images[0].device
        return {**observation, **{VLM_INPUT + key: value.to(device) for key, value in inputs.items()}}

    def _instructions(self, batch: int) -> list[str]:
        task = (self.transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get("task")
        if task is None:
            raise ValueError(
                "aegis_vla needs a language instruction for each sample: the batch has no `task`. A LeRobotDataset "
                "carries it with every frame; on a robot pass it with --task."
            )
        tasks = [task] if isinstance(task, str) else list(task)
        if len(tasks) == 1:
            tasks = tasks * batch
        if len(tasks) != batch:
            raise ValueError(f"Each sample needs one instruction: got {len(tasks)} for {batch} observations.")
        return tasks

    def get_config(self) -> dict[str, Any]:
        """What the checkpoint stores of this step."""
        return {
            "backbone": self.backbone,
            "image_keys": self.image_keys,
            "revision": self.revision,
            "padded": self.padded,
            "max_tokens": self.max_tokens,
            "image_options": self.image_options,
        }

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """The policy's own features do not change."""
        return features


def make_aegis_vla_pre_post_processors(
    config: AegisVLAConfig,
    dataset_stats: dict[str, dict[str, Tensor]] | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """The pipelines around the policy: batch, VLM inputs, device, normalisation; and back.

    Without `dataset_stats` a policy that starts from another's checkpoint normalises with that checkpoint's.
    """
    if dataset_stats is None and config.init_from:
        dataset_stats = checkpoint_of(config).statistics()
    steps = make_default_policy_processor_steps(config, dataset_stats)
    vlm_inputs = VLMInputsProcessorStep(
        backbone=config.backbone,
        image_keys=list(config.image_features),
        revision=config.backbone_revision,
        padded=config.prompt_form != "processor",
        max_tokens=config.prompt_max_tokens,
        image_options=config.image_options,
    )
    observed: dict[str, list[ProcessorStep]] = {
        "processor": [vlm_inputs, steps.to_device, steps.normalize],
        "pi0": [Pi0NewLineProcessor(), vlm_inputs, steps.to_device, steps.normalize],
        # The state becomes text once it is normalised.
        "pi05": [steps.normalize, Pi05PrepareStateTokenizerProcessorStep(), vlm_inputs, steps.to_device],
    }
    return make_policy_processor_pipelines(
        input_steps=[steps.rename_observations, steps.add_batch_dim, *observed[config.prompt_form]],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )


def vlm_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The VLM's own inputs in a preprocessed batch.

    Raises:
        ValueError: If there are none.
    """
    inputs = {k.removeprefix(VLM_INPUT): v for k, v in batch.items() if k.startswith(VLM_INPUT)}
    if not inputs:
        raise ValueError(
            f"The batch has no {VLM_INPUT}* keys: pass it through the policy's preprocessor "
            "(make_pre_post_processors) first."
        )
    return inputs
