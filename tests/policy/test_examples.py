"""The examples run as they are, and show what they say."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_smolvla_learns_as_much_and_its_language_layers_move_far_less(capsys):
    runpy.run_path(str(EXAMPLES / "lerobot_smolvla.py"), run_name="__main__")
    rows = {
        name: (float(loss), float(moved))
        for name, loss, moved in re.findall(r"(\w+) +([\d.]+) +([\d.]+) %", capsys.readouterr().out)
    }
    (loss, moved), (protected_loss, protected_moved) = rows["AdamW"], rows["AegisAdamW"]
    assert protected_loss < 1.5 * loss
    assert protected_moved < 0.2 * moved
