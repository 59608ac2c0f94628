"""Each benchmark runs in its smallest setting and leaves its tables; what it measured is not looked at."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature

from aegis_eval.run_result import Curves, LayerCurve, RunResult
from aegis_policy.configuration_aegis_vla import AegisVLAConfig
from aegis_policy.modeling_aegis_vla import AegisVLAPolicy

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHORT = ["--rounds=2", "--clock=cpu"]
TINY = ["--backbone=tiny-smolvlm2", "--batch=2"]
RUNS = {
    "step": [*TINY, "--arms=naive,lora,gradient,subspace_97_features", "--chunk=2"],
    "step fresh": ["--backbone=tiny-paligemma2", "--batch=2", "--arms=naive,subspace", "--chunk=2", "--fresh"],
    "scaling": [*TINY, "--vary=layers", "--chunk=2"],
    "anchor": [*TINY, "--samples=4"],
    "anchor coverage": ["--coverage", "--samples=16", "--batch=8"],
    "inference": ["--size=tiny", "--batches=1"],
    "subspace": ["--shape=tiny-smolvlm2"],
    "subspace arithmetic": ["--arithmetic"],
    "ranks": [*TINY, "--arms=naive,subspace_97_features", "--chunk=2"],
    "reading": ["--episodes=1", "--chunks=1,2", "--image-size=32"],
}


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("run", RUNS)
def test_the_smallest_setting_runs_and_leaves_its_tables(run: str, benchmark_module, tmp_path: Path, capsys) -> None:
    name = run.split()[0]
    out = tmp_path / name
    benchmark_module(name).main([*RUNS[run], *SHORT, f"--out={out}"])
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["command"].startswith(f"python benchmarks/{name}.py {RUNS[run][0]}")
    assert record["tables"]
    for table in record["tables"]:
        assert {len(row) for row in table["rows"]} == {len(table["header"])}
    assert out.with_suffix(".md").read_text().strip() in capsys.readouterr().out
    assert out.with_suffix(".png").is_file() == (name == "scaling")


def test_episodes_are_split_by_what_is_new_for_every_arm_that_was_kept(benchmark_module, capsys) -> None:
    results = BENCHMARKS.parent / "results/words"
    referring = benchmark_module("referring")
    referring.SCENES = 300
    referring.main(["--count=2", f"--results={results}", "--set=attributes"])
    asked, acted, rest = capsys.readouterr().out.split("Success on")
    looks, unread = rest.split("Right object (%)")
    assert all("of 2" in line for line in asked.splitlines() if line.startswith("| the "))
    found = {line.split("|")[1].strip(): line.split("|")[2] for line in unread.splitlines() if line.startswith("|")}
    # Who looks for what no demonstration shows finds it in the set that asks for it, elsewhere by luck.
    assert int(found["never_shown"]) > 60 and abs(int(found["questions"]) - 33) < 10
    kept = {tuple(file.stem.rsplit("-", 2)[:2]) for file in results.glob("*-seed*.json")}
    for split in (acted, looks):
        arms = {line.split("|")[1].strip() for line in split.splitlines()[4:] if line.startswith("|")}
        assert arms == {f"{arm}, {rate.removeprefix('lr')}" for arm, rate in kept}
    assert "it is the odd one out" in looks and "another is odder" in looks


def test_a_map_that_grew_by_a_tenth_answers_a_tenth_more(benchmark_module, tmp_path: Path, capsys) -> None:
    camera = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 48, 64))
    config = AegisVLAConfig(
        input_features={"observation.images.front": camera},
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(4,))},
        device="cpu",
    )
    policy = AegisVLAPolicy(config)
    policy.save_pretrained(tmp_path / "as_it_was")
    with pytest.raises(SystemExit, match="No linear map"):
        benchmark_module("responses").main([str(tmp_path / "as_it_was"), "--samples=1"])
    name, linear = list(policy.backbone.linears().items())[-1]
    with torch.no_grad():
        linear.weight.mul_(1.1)
    policy.save_pretrained(tmp_path / "trained")
    benchmark_module("responses").main([str(tmp_path / "trained"), "--samples=2", "--energy=1"])
    _, _, row = (line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    cells = [cell.strip() for cell in row.strip("| ").split("|")]
    layer = name.split(".")[-4]
    assert cells[0] == name.removesuffix(".weight").replace(f".{layer}.", ".*.")
    assert cells[1:4] == ["10.00", "10.00", layer]
    assert cells[4].endswith(f" of {linear.in_features}")


def test_the_length_left_of_a_step_is_the_root_of_what_was_not_shed(benchmark_module, tmp_path: Path, capsys) -> None:
    def keep(arm: str, **options: object) -> None:
        curve = LayerCurve(steps=[1, 2], layers=["0", "1"], values=[[0.75, 0.96], [0.96, 0.75]])  # roots: 0.5, 0.2
        settings = {"options": {f"policy.{name}": value for name, value in options.items()}}
        run = RunResult(
            arm=arm, lr=1e-3, seed=0, settings=settings, successes={"shown": {"touch": "1101"}},
            curves=Curves(energy_shed=curve),
        )  # fmt: skip
        run.write(tmp_path / f"{arm}-lr0.001-seed0.json")

    keep("slow", projection="subspace")
    keep("fast", projection="subspace", optimizer_backbone_lr=3e-3)
    keep("paper", projection="gradient")  # of its gradient, not of its step
    benchmark_module("step_length").main([f"--results={tmp_path}"])
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert rows[2:] == [
        ["fast", "0", "0.001", "0.003", "0.35", "1.05", "75.0"],
        ["slow", "0", "0.001", "0.001", "0.35", "0.35", "75.0"],
    ]
    with pytest.raises(SystemExit, match="must be one of shown"):
        benchmark_module("step_length").main([f"--results={tmp_path}", "--set=hidden"])


def test_a_ratio_is_formed_within_a_round(benchmark_module) -> None:
    measure = benchmark_module("measure")
    # Everything took ten times longer in the second and third round: the ratio does not care.
    assert measure.ratio([2.0, 20.0, 20.0], [1.0, 10.0, 10.0]) == "2.00 [2.00, 2.00]"


def test_every_arm_runs_once_a_round_and_the_first_round_does_not_count(benchmark_module) -> None:
    order: list[str] = []

    def arm(name: str):
        return lambda: order.append(name) or float(len(order))

    times = benchmark_module("measure").interleave({"a": arm("a"), "b": arm("b")}, rounds=2)
    assert sorted(order[:2]) == sorted(order[2:4]) == sorted(order[4:]) == ["a", "b"]
    assert order[2:4] != order[4:]  # nobody is always first
    assert sorted(times["a"] + times["b"]) == [3.0, 4.0, 5.0, 6.0]


def test_settings_that_measure_nothing_are_refused(benchmark_module, capsys) -> None:
    measure = benchmark_module("measure")
    for arguments, reason in ((["--rounds=1"], "at least 2"), (["--clock=cpu", "--device=cuda"], "leave it at wall")):
        with pytest.raises(SystemExit):
            measure.parse(measure.make_parser("some.py", "", rounds=3), arguments)
        assert reason in capsys.readouterr().err
