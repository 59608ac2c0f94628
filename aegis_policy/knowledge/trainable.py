"""Which of the backbone's weights learn, by the way in which knowledge is kept.

    none, stop_gradient     all of it (under stop_gradient no action gradient arrives there)
    frozen                  nothing
    aegis, gradient/update  all of it, each transformer layer and each remaining module a protected layer
    aegis, a subspace       linear maps whose inputs the anchor knows; norms, biases, embeddings and convolutions are
                            no such maps, so they stay as they are

`tune_vision=False` leaves only the language model of each row. Language layers behind the prefix (`num_vlm_layers`)
never learn. An output head that is no embedding learns where answers
are trained beside actions (co-training) and no layer is protected: actions never reach it.
"""

import re
from collections.abc import Collection

from torch import nn

from aegis_policy.aegis import SUBSPACES
from aegis_policy.network.backbone import Backbone

_NUMBERED = re.compile(r"^(.*?\.\d+)\.")


def choose_trainable(
    backbone: Backbone,
    *,
    knowledge: str,
    projection: str,
    tune_vision: bool,
    answers: bool,
    anchored: Collection[str],
) -> dict[str, nn.Parameter]:
    """Sets `requires_grad` throughout the backbone.

    Args:
        backbone: The VLM.
        knowledge: As in `AegisVLAConfig`.
        projection: As in `AegisVLAConfig`.
        tune_vision: As in `AegisVLAConfig`.
        answers: Whether answers are trained too.
        anchored: Names of the weights whose input directions the anchor knows.

    Returns:
        Qualified name -> parameter that learns.
    """
    head = backbone.vlm.get_output_embeddings()
    embeddings = {id(p) for p in backbone.vlm.get_input_embeddings().parameters()}
    reached = head is None or (answers and knowledge != "aegis")
    unused = set() if reached else {id(p) for p in head.parameters()} - embeddings  # a tied head is the embedding
    subspace = knowledge == "aegis" and projection in SUBSPACES
    chosen = {}
    for name, parameter in backbone.vlm.named_parameters():
        learns = (
            knowledge != "frozen"
            and id(parameter) not in unused
            and not backbone.is_beyond(name)
            and (tune_vision or backbone.is_language(name))
            and (not subspace or name in anchored)
        )
        parameter.requires_grad_(learns)
        if learns:
            chosen[name] = parameter
    return chosen


def layer_of(name: str) -> str:
    """The protected layer to which a parameter belongs.

    >>> layer_of("model.language_model.layers.3.mlp.up_proj.weight")
    'model.language_model.layers.3'
    >>> layer_of("model.multi_modal_projector.linear.weight")
    'model.multi_modal_projector.linear'
    """
    numbered = _NUMBERED.match(name)
    return numbered.group(1) if numbered else name.rpartition(".")[0]
