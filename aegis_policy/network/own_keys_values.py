"""Keys and values of the expert's own, beside those that the language model keeps for itself.

With `x` what the attention of a language layer is given, and its cached keys `K` and values `V`, the expert reads

    K' = K + U x,        V' = V + W x,

with `U` and `W` a pair of maps a layer, zero at first: training starts from the cache as it is (pi0, arXiv 2410.24164).
In an unprotected VLM the key and value maps themselves bend towards what the expert asks for, and its answers with
them. `U` and `W` can bend the same way and no answer goes through them. What `U` adds is not rotated by its position:
where a thing is, `K` says already, and so no family's rotary embedding has to be known here.

Legend: `B` batch, `T` prefix tokens, `D` width, `H` key/value heads, `d` head size.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

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
        self.keys = self._maps(config, depth=backbone.depth)
        self.values = self._maps(config, depth=backbone.depth)

    def forward(self, prefix: Prefix) -> Prefix:
        """The prefix as the expert reads it.

        Args:
            prefix: Of `Backbone.encode` with `keep_attended`.
        """
        layers = range(len(self.keys))
        x = prefix.attended
        return replace(
            prefix,
            keys=tuple(prefix.keys[i] + self._by_head(self.keys[i](x[i])) for i in layers),
            values=tuple(prefix.values[i] + self._by_head(self.values[i](x[i])) for i in layers),
        )

    def _by_head(self, mapped: Tensor) -> Tensor:
        """(B, T, H d) -> (B, H, T, d)."""
        return mapped.unflatten(-1, (self.heads, -1)).transpose(1, 2)

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
