"""The action expert: a narrow decoder that reads the VLM's keys and values layer by layer.

It is the backbone's own decoder class, as deep as the prefix, with the same heads for keys and values, but narrower.
Its tokens are one for the state and one an action of the chunk; each sees the whole prefix, the state token sees
itself, action tokens see the state and each other (the block-causal attention of pi0, arXiv 2410.24164). That holds in
layers of a sliding window too: how far a word may look back is the language model's concern, which the expert learns
nothing from, and the first camera is as near to an action as the last word.

Legend: `B` batch, `T` prefix tokens, `H` horizon (actions a chunk), `A` action size, `S` state size, `W` width.
"""

from copy import deepcopy
from typing import Any

import torch
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding
from torch import Tensor, nn
from torch.nn import functional as F

from aegis_policy.aegis import average_over_ranks
from aegis_policy.network.backbone import Backbone, Prefix
from aegis_policy.network.own_keys_values import OwnKeysValues, head_size

# Periods of the time embedding, in units of flow time: pi0's.
MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0


class ActionExpert(nn.Module):
    """Velocity field of the action chunk, given a prefix.

    Args:
        backbone: The VLM whose cache is read; only its configuration and decoder class are used.
        action_size: `A`.
        state_size: `S`, 0 for none.
        width_ratio: `W` over the language model's width, and so for the width inside its MLPs.
        hidden_size: `W` itself, in place of the ratio.
        intermediate_size: The width inside its MLPs, in place of the ratio.
        own_keys_values: Whether it reads keys and values of its own beside those of the cache.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        action_size: int,
        state_size: int,
        width_ratio: float,
        hidden_size: int | None = None,
        intermediate_size: int | None = None,
        own_keys_values: bool = False,
    ):
        super().__init__()
        config = narrow_config(backbone.text_config, width_ratio=width_ratio, depth=backbone.depth)
        config.hidden_size = hidden_size or config.hidden_size
        config.intermediate_size = intermediate_size or config.intermediate_size
        width = config.hidden_size
        self.decoder: Any = self._make_decoder(backbone, config)
        self.decoder.embed_tokens = None  # its inputs are embeddings of state and actions, never tokens
        self.state_in = nn.Linear(state_size, width) if state_size else None
        self.action_in = nn.Linear(action_size, width)
        self.time_mlp = self._make_time_mlp(width)
        self.action_out = nn.Linear(width, action_size)
        self.own_keys_values = OwnKeysValues(backbone) if own_keys_values else None

    def read(self, prefix: Prefix) -> Prefix:
        """The prefix as the expert reads it: once for all evaluations of the flow."""
        return prefix if self.own_keys_values is None else self.own_keys_values(prefix)

    def _make_decoder(self, backbone: Backbone, config: Any) -> Any:
        return type(backbone.decoder)(config)

    def _make_time_mlp(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, noisy_actions: Tensor, time: Tensor, *, state: Tensor | None, prefix: Prefix) -> Tensor:
        """Velocity at `noisy_actions`.

        Args:
            noisy_actions: (B, H, A).
            time: (B,), 1 is noise and 0 the action.
            state: (B, S), or None where the policy has no state.
            prefix: From `read`; not changed.

        Returns:
            (B, H, A), d(action)/d(time).
        """
        tokens, condition = self._embed(noisy_actions, time, state)  # (B, [1 +] H, W)
        offset = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.decoder(
            inputs_embeds=tokens,
            attention_mask=self._mask(prefix.mask, length=tokens.shape[1], dtype=tokens.dtype),
            position_ids=prefix.next_position[:, None] + offset,
            past_key_values=prefix.cache(),
            use_cache=True,
            **condition,
        ).last_hidden_state
        return self.action_out(hidden[:, -noisy_actions.shape[1] :])

    def _embed(self, noisy_actions: Tensor, time: Tensor, state: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens, and what else the decoder is told."""
        actions = self.action_in(noisy_actions)  # (B, H, W)
        clock = self._clock(time, actions)
        tokens = self.time_mlp(torch.cat([actions, clock[:, None].expand_as(actions)], dim=-1))
        return self._after_state(state, tokens), {}

    def _clock(self, time: Tensor, actions: Tensor) -> Tensor:
        """Sines and cosines of `time`, (B, W)."""
        width = actions.shape[-1]
        return create_sinusoidal_pos_embedding(time, width, MIN_PERIOD, MAX_PERIOD, device=time.device).to(
            actions.dtype
        )

    def _after_state(self, state: Tensor | None, tokens: Tensor) -> Tensor:
        if self.state_in is None:
            return tokens
        assert state is not None, "a policy with a state feature is given a state"
        return torch.cat([self.state_in(state)[:, None], tokens], dim=1)

    def _mask(self, prefix_mask: Tensor, *, length: int, dtype: torch.dtype) -> Tensor:
        """Additive mask (B, 1, length, T + length): zero where a token may look."""
        batch = prefix_mask.shape[0]
        own = torch.ones(length, length, dtype=torch.bool, device=prefix_mask.device)
        if self.state_in is not None:
            own[0, 1:] = False
        seen = torch.cat([prefix_mask[:, None].expand(-1, length, -1), own.expand(batch, -1, -1)], dim=-1)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[
            :, None
        ]


def narrow_config(text_config: Any, *, width_ratio: float, depth: int) -> Any:
    """The language model's configuration, narrower and `depth` deep, with the same head size and key/value heads.

    Where a family derives the head size from the width (Qwen2.5-VL), the number of query heads shrinks with it.
    """
    config = deepcopy(text_config)
    if getattr(text_config, "head_dim", None) is None:
        groups = text_config.num_attention_heads // text_config.num_key_value_heads
        groups = max(1, int(groups * width_ratio))
        config.num_attention_heads = groups * text_config.num_key_value_heads
        config.hidden_size = config.num_attention_heads * head_size(text_config)
    else:
        config.hidden_size = _even(text_config.hidden_size * width_ratio)
    config.intermediate_size = _even(text_config.intermediate_size * width_ratio)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:depth]
    config.num_hidden_layers = depth
    config.vocab_size = 1
    config.pad_token_id = None
    return config


def _even(size: float) -> int:
    return max(8, 8 * round(size / 8))


def masked_mse(velocity: Tensor, target: Tensor, *, is_pad: Tensor | None) -> Tensor:
    """Mean squared error a sample over the actions that are no padding.

    Args:
        velocity: (B, H, A).
        target: (B, H, A).
        is_pad: (B, H), true where the chunk reaches past the episode's end; None where nothing does.

    Returns:
        (B,); 0 for a sample that is all padding.
    """
    error = F.mse_loss(velocity.float(), target.float(), reduction="none").mean(dim=-1)  # (B, H)
    if is_pad is None:
        return error.mean(dim=-1)
    valid = (~is_pad).to(error.dtype)
    return (error * valid).sum(dim=-1) / valid.sum(dim=-1).clamp_min(1)


def mean_over_actions(losses: Tensor, *, is_pad: Tensor | None, over_ranks: bool) -> Tensor:
    """Mean over all actions of the batch that are no padding: samples weigh by how many they have.

    Args:
        losses: (B,), from `masked_mse`.
        is_pad: (B, H), as there.
        over_ranks: Whether the divisor is the mean number of all ranks' actions, so that an action weighs the same
            wherever it is, and the mean of the ranks' losses is the mean over all actions of the global batch. Then
            every rank must call.

    Returns:
        (); 0 where everything is padding.
    """
    counts = torch.ones_like(losses) if is_pad is None else (~is_pad).sum(dim=-1).to(losses.dtype)
    total = counts.sum()
    return (losses * counts).sum() / (average_over_ranks(total) if over_ranks else total).clamp_min(1)
