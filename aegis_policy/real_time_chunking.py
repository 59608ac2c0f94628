"""Real-time chunking: while a chunk is carried out, the next is computed and held to what is left of it.

LeRobot has the guidance (`RTCProcessor`, after arXiv 2506.07339); here is what a policy owes it. lerobot-rollout sets
`config.rtc_config` on a policy that is loaded already, then calls `init_rtc_processor`.

LeRobot's asynchronous inference hands over a fixed number of left-over actions, the execution horizon, and fills with
zeros what the last chunk no longer had. In normalised units zero is an action: the data's mean pose. Guided towards
it, an arm whose queue ran short would swing to the middle of the table. The guidance itself needs no padding: it ends
where the left-over actions do.
"""

from typing import Any

from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor

from aegis_policy.configuration_aegis_vla import AegisVLAConfig


class RealTimeChunking:
    """What LeRobot calls on a policy that can be guided. State: the guidance, None where there is none."""

    config: AegisVLAConfig
    rtc_processor: RTCProcessor | None

    def supports_rtc(self) -> bool:
        """Always: what a configuration may lack, `init_rtc_processor` names."""
        return True

    @property
    def rtc_enabled(self) -> bool:
        """Whether chunks are guided: real-time chunking keeps a queue of its own then."""
        return self.config.rtc_config is not None and self.config.rtc_config.enabled

    def init_rtc_processor(self) -> None:
        """Makes the guidance that `config.rtc_config` asks for.

        Raises:
            ValueError: If the sampler is not LeRobot's Euler, or the execution horizon is none within a chunk.
        """
        rtc = self.config.rtc_config
        if rtc is not None and rtc.enabled:
            if self.config.sampler != "euler":
                raise ValueError(
                    f"Real-time chunking guides LeRobot's Euler loop only; the policy's sampler is "
                    f"{self.config.sampler!r}. Set --policy.sampler=euler."
                )
            if not 1 <= rtc.execution_horizon <= self.config.chunk_size:
                raise ValueError(
                    f"Real-time chunking cannot hold on to {rtc.execution_horizon} actions of the chunk before: the "
                    f"policy predicts {self.config.chunk_size}. Set --inference.rtc.execution_horizon to at most "
                    "that, less the actions that pass during an inference."
                )
        self.rtc_processor = None if rtc is None else RTCProcessor(rtc)

    def _guidance(self, left_over: Tensor | None) -> dict[str, Any]:
        """What LeRobot's Euler loop is told, with the left-over actions as they come."""
        return {
            "rtc_processor": self.rtc_processor,
            "rtc_enabled": self.rtc_enabled,
            "prev_chunk_left_over": without_padding(left_over),
        }


def without_padding(left_over: Tensor | None) -> Tensor | None:
    """The left-over actions (T, A) or (B, T, A) without the zeros at their end; None if there is nothing else.

    An action of exact zeros throughout never comes out of a flow that was integrated from noise.
    """
    if left_over is None or left_over.numel() == 0:
        return None
    is_action = left_over.ne(0).any(dim=-1)  # (T,) or (B, T)
    if is_action.ndim > 1:
        is_action = is_action.any(dim=0)
    indices = is_action.nonzero()
    if len(indices) == 0:
        return None
    return left_over[..., : int(indices[-1]) + 1, :]
