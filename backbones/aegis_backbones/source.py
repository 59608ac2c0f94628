"""VQA samples about procedural scenes: what the nano backbone was pre-trained on, for anchors and probes."""

import numpy as np
from PIL import Image

from aegis_backbones.questions import FAMILIES, ask
from aegis_backbones.renderer import SceneRenderer, draw_scene
from aegis_policy.vqa import VQASample

QUESTION_KEY = 7919  # keeps the questions' random stream apart from the scenes'


def nano_scenes(*, count: int, seed: int, split: str) -> list[VQASample]:
    """Questions about rendered scenes, one a scene, the seven families in turn.

    Args:
        count: How many samples; `count / 7` of each family.
        seed: The same seed and split give the same samples, pixels included.
        split: `"train"` or `"validation"`; the two never share a scene, whatever their seeds.

    Raises:
        ValueError: If the split is unknown.
    """
    samples: list[VQASample] = []
    index = 0
    with SceneRenderer() as renderer:
        while len(samples) < count:
            picture = draw_scene(renderer, split=split, seed=seed, index=index)
            rng = np.random.default_rng([QUESTION_KEY, seed, index])
            question = ask(picture.seen, rng, FAMILIES[len(samples) % len(FAMILIES)])
            index += 1
            if question is not None:
                image = Image.fromarray(picture.image)
                samples.append(VQASample((image,), question.question, question.answers, question.family))
    return samples
