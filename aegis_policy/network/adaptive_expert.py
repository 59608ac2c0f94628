"""An action expert to whose norms time speaks (pi0.5, arXiv 2504.16054; after DiT's adaptive norms, arXiv 2212.09748).

With c = silu(MLP(clock(t))), each norm of the decoder and each residual become

    norm(x) = rms(x) * (1 + scale(c)) + shift(c),        x <- x + gate(c) * f(norm(x)),

where scale, shift and gate are one linear map of c a norm. Action tokens themselves carry no time.
"""

from typing import Any

from lerobot.policies.pi_gemma import PiGemmaModel
from torch import Tensor, nn

from aegis_policy.network.backbone import Backbone
from aegis_policy.network.expert import ActionExpert


class AdaptiveNormExpert(ActionExpert):
    """Velocity field of the action chunk, given a prefix; arguments are those of `ActionExpert`.

    Raises:
        ValueError: For a backbone whose language model is no Gemma: LeRobot's decoder with such norms is one.
    """

    def _make_decoder(self, backbone: Backbone, config: Any) -> Any:
        if config.model_type not in ("gemma", "gemma_text"):
            raise ValueError(
                "time_conditioning=adaptive_norm builds LeRobot's Gemma decoder and needs a backbone whose language "
                f"model is a Gemma (PaliGemma): got {config.model_type}. Use time_conditioning=concat."
            )
        config.use_adarms = True
        config.adarms_cond_dim = config.hidden_size
        return PiGemmaModel(config)

    def _make_time_mlp(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def _embed(self, noisy_actions: Tensor, time: Tensor, state: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        actions = self.action_in(noisy_actions)  # (B, H, W)
        condition = self.time_mlp(self._clock(time, actions))  # (B, W)
        return self._after_state(state, actions), {"adarms_cond": condition}
