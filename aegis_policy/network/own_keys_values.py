"""Keys and values of the expert's own, beside those that the language model keeps for itself.

With `x` what the attention of a language layer is given, `R` the rotation by a token's position, and the layer's cached
keys `K` and values `V`, the expert reads

    K' = K + R U x,        V' = V + W x,

with `U` and `W` a pair of maps a layer, zero at first: training starts from the cache as it is (pi0, arXiv 2410.24164).
In an unprotected VLM the key and value maps themselves bend towards what the expert asks for, and its answers with
them. `U` and `W` can bend the same way, and no answer goes through them.

Legend: `B` batch, `T` prefix tokens, `D` width, `H` key/value heads, `d` head size.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_multimodal_rotary_pos_emb

from aegis_policy.network.backbone import Backbone, Prefix


class OwnKeysValues(nn.Module):
    """The maps `U` and `W` of every layer.

    Args:
        backbone: Whose cache is read; its configuration gives the sizes.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        config = backbone.text_config
        self.heads = config.num_key_value_heads
        # Of models that turn parts of a key by time, height and width of an image's token (arXiv 2409.12191).
        self.sections = (getattr(config, "rope_parameters", None) or {}).get("mrope_section")
        self.keys = self._maps(config, depth=backbone.depth)
        self.values = self._maps(config, depth=backbone.depth)

    def forward(self, prefix: Prefix) -> Prefix:
        """The prefix as the expert reads it.

        Args:
            prefix: Of `Backbone.encode` with `keep_attended`.
        """
        keys, values = [], []
        for i, attended in enumerate(prefix.attended):
            own = self.rotated(self.by_head(self.keys[i](attended.hidden)), attended.rotary)
            keys.append(prefix.keys[i] + own)
            values.append(prefix.values[i] + self.by_head(self.values[i](attended.hidden)))
        return replace(prefix, keys=tuple(keys), values=tuple(values))

    def by_head(self, mapped: Tensor) -> Tensor:
        """(B, T, H d) -> (B, H, T, d)."""
        return mapped.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def rotated(self, keys: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Keys (B, H, T, d) turned by their tokens' positions, as the layer turns its own."""
        cos, sin = rotary
        if cos.ndim == 4:  # (3, B, T, d), one a kind of position
            return apply_multimodal_rotary_pos_emb(keys, keys, cos, sin, self.sections)[1]
        return apply_rotary_pos_emb(keys, keys, cos, sin)[1]

    def _maps(self, config: Any, *, depth: int) -> nn.ModuleList:
        size = self.heads * head_size(config)
        maps = [nn.Linear(config.hidden_size, size, bias=False) for _ in range(depth)]
        for linear in maps:
            nn.init.zeros_(linear.weight)
        return nn.ModuleList(maps)


def head_size(text_config: Any) -> int:
    """Size of an attention head; where a family's configuration leaves it out, the width over the number of heads."""
    size: int | None = getattr(text_config, "head_dim", None)
    return text_config.hidden_size // text_config.num_attention_heads if size is None else size
