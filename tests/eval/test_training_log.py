"""What lerobot-train writes is read back exactly, killed and resumed runs included."""

from pathlib import Path

import pytest
from lerobot.utils.utils import format_big_number

from aegis_eval.training_log import FROM_STEP, _shorten, read_progress, read_training_log


def tracker_line(step, **metrics):
    """A line as LeRobot's MetricsTracker formats it."""
    shown = " ".join(f"{name}:{value}" for name, value in metrics.items())
    return (
        f"INFO 2026-01-01 10:00:00 ot_train.py:512 step:{format_big_number(step)} "
        f"smpl:{format_big_number(32 * step)} ep:{format_big_number(step)} epch:{step / 9:.2f} {shown}\n"
    )


def test_a_log_of_lerobot_train_itself_is_read():
    """20 steps of a projected training, as LeRobot 0.6.1 wrote them, progress bars included."""
    text = (Path(__file__).parent / "data" / "lerobot_train.log").read_text()
    log = read_training_log(text.splitlines(keepends=True), log_freq=5)
    assert list(log.metrics) == [5, 10, 15, 20]
    assert log.metrics[20]["flow_loss"] == 1.756
    assert log.metrics[20]["cosine"] == -0.051
    assert log.metrics[5]["anchor_distance_03"] == 1293.539
    assert log.metrics[5]["lr"] == 9.4e-4
    assert read_progress(text) == 1.0


def test_every_number_of_a_line_is_read():
    line = tracker_line(
        20,
        loss="1.302",
        grdn="2.110",
        lr="1.5e-04",
        updt_s="0.401",
        data_s="0.020",
        **{"smp/s": 76},
        vqa="nan",
    )
    metrics = read_training_log([line], log_freq=20).metrics[20]
    assert metrics["loss"] == 1.302
    assert metrics["lr"] == 1.5e-4
    assert metrics["smp/s"] == 76
    assert metrics["vqa"] != metrics["vqa"]


def test_shortened_steps_become_exact_again():
    steps = range(20, 3001, 20)
    log = read_training_log([tracker_line(step, loss="0.1") for step in steps], log_freq=20)
    assert list(log.metrics) == list(steps)


def test_steps_are_shortened_as_lerobot_does():
    for number in (0, 20, 999, 1000, 1499, 1500, 32_000, 999_499, 1_000_000):
        assert _shorten(number) == format_big_number(number)


def test_a_resumed_run_overwrites_the_steps_it_repeats():
    first = [tracker_line(step, loss="1.0") for step in range(20, 1301, 20)]
    again = [tracker_line(step, loss="2.0") for step in range(1220, 1501, 20)]
    log = read_training_log([*first, f"{FROM_STEP} 1200\n", *again], log_freq=20)
    assert list(log.metrics) == list(range(20, 1501, 20))
    steps, losses = log.curve("loss")
    assert [s for s, loss in zip(steps, losses, strict=True) if loss == 2.0] == list(range(1220, 1501, 20))


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew():
    first = [tracker_line(step, loss="1.0") for step in range(20, 161, 20)]
    again = [tracker_line(step, loss="2.0") for step in range(20, 301, 20)]
    log = read_training_log([f"{FROM_STEP} 0\n", *first, f"{FROM_STEP} 0\n", *again], log_freq=20)
    assert log.curve("loss") == (list(range(20, 301, 20)), [2.0] * 15)


def test_a_wrong_log_freq_is_refused():
    with pytest.raises(ValueError, match="log_freq=50"):
        read_training_log([tracker_line(20, loss="1.0")], log_freq=50)


def test_reports_of_the_policy_are_read_with_their_exact_step():
    report = '{"step": 1040, "scores": {"vqa": 0.5}, "layers": {"l.0": 0.25}}'
    line = f"INFO 2026-01-01 10:00:00 _aegis_vla.py:99 aegis {report}\n"
    log = read_training_log([line], log_freq=20)
    assert log.probes[1040]["layers"] == {"l.0": 0.25}
    assert log.score_curve("vqa") == ([1040], [0.5])


def test_log_lines_are_found_behind_a_progress_bar():
    bar = "Training:   7%|▋         | 20/300 [00:08<01:51,  2.51step/s]"
    log = read_training_log([f"\r{bar}" + tracker_line(20, loss="0.5")], log_freq=20)
    assert log.metrics[20]["loss"] == 0.5


def test_progress_is_that_of_the_last_bar():
    tail = "Training:   7%|▋ | 20/300 [00:08<01:51]\rTraining:  50%|█ | 150/300 [01:00<01:00,  2.51step/s]"
    assert read_progress(tail) == 0.5
    assert read_progress("INFO Creating dataset") is None


def test_progress_is_that_of_the_bar_that_is_asked_for():
    tail = "Generating train split: 100%|██| 9/9 [00:01]\nRecording:  20%|█ | 60/300 [00:09<00:36, failed=1]"
    assert read_progress(tail, bar="Recording") == 0.2
    assert read_progress(tail) is None


def test_the_mean_of_the_last_windows_ignores_the_others():
    log = read_training_log([tracker_line(s, loss=f"{s}.0") for s in (20, 40, 60)], log_freq=20)
    assert log.mean("loss", last=2) == 50
    assert log.mean("loss") == 40
    assert log.mean("absent") is None
