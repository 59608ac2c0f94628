import copy
import runpy
from pathlib import Path

import torch


def test_the_plain_torch_example_shows_what_it_says() -> None:
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "plain_torch.py"))
    torch.manual_seed(0)
    start = example["pretrained"](torch.Generator().manual_seed(0))
    known = example["scores"](start)[0]
    kept, error = {}, {}
    for name in ("naive", "head_only", "aegis"):
        net = copy.deepcopy(start)
        example["finetune"](net, example[name](net), steps=600)
        kept[name], error[name] = example["scores"](net)
    assert kept["naive"] < known - 0.2  # otherwise there is nothing to protect from
    assert kept["aegis"] > known - 0.03
    assert error["aegis"] < error["head_only"] / 2  # and the backbone does learn
