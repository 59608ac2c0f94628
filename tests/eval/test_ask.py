"""aegis-ask answers about pictures and about frames of a dataset, seen as the policy sees them."""

import io
import json

import pytest

from aegis_envs.record import main as record
from aegis_eval.ask import main
from aegis_policy.vqa import load_vqa_source


@pytest.fixture(scope="module")
def samples():
    return load_vqa_source("nano_scenes")(count=14, seed=5, split="validation")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("recorded") / "data"
    record([f"--root={root}", "--task=touch", "--episodes=1", "--cameras=front,wrist"])
    return root


def test_the_embedded_backbone_answers_about_a_picture(samples, tmp_path, capsys):
    right = 0
    for number, sample in enumerate(samples):
        sample.images[0].save(tmp_path / f"{number}.png")
        assert main(["nano", sample.question, f"--image={tmp_path / f'{number}.png'}"]) == 0
        question, answer = capsys.readouterr().out.splitlines()
        assert question == sample.question
        right += sample.accepts(answer)
    assert right >= 12  # of 14; the backbone answers 98 % of these


def test_questions_come_from_a_file_line_by_line(dataset, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("how many objects are there?\n\nis there a robot?\n"))
    assert main(["nano", f"--dataset={dataset}", "--camera=front"]) == 0
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 2 and answers[0] == "3"


def test_cameras_are_shown_in_the_policys_order_unless_they_are_named(dataset, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("aegis_policy.answering.load_vlm", lambda *_, **__: Listener(shown))
    features = {f"observation.images.{c}": {"type": "VISUAL"} for c in ("wrist", "top", "front")}
    policy = {"type": "aegis_vla", "input_features": {"observation.state": {"type": "STATE"}} | features}
    (tmp_path / "config.json").write_text(json.dumps(policy))
    for extra in ([], ["--camera=front"], ["--camera=front", "--camera=wrist"]):
        assert main([str(tmp_path), "hm?", f"--dataset={dataset}", "--frame=2", *extra]) == 0
    wrist, front = shown[0]
    assert wrist != front
    assert shown[1:] == [(front,), (front, wrist)]


class Listener:
    def __init__(self, shown):
        self.shown = shown

    def answer(self, samples, **_):
        self.shown.append(tuple(image.tobytes() for image in samples[0].images))
        return ["hm"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "Give --image FILE"),
        (["--image={here}", "--dataset={data}"], "one of the two"),
        (["--image={here}/absent.png", "--frame=3"], "--frame and --camera choose from a --dataset"),
        (["--image={here}/absent.png", "--camera=front"], "--frame and --camera choose from a --dataset"),
        (["--image={here}/absent.png"], "--image must be a picture"),
        (["--image={here}"], "--image must be a picture"),
        (["--dataset={here}"], "has no meta/info.json"),
        (["--dataset={data}", "--frame=9999"], "--frame must be 0 to"),
        (["--dataset={data}", "--camera=side"], "--camera must be one of front, wrist: got side"),
    ],
)
def test_what_cannot_be_looked_at_is_told(dataset, tmp_path, capsys, options, told):
    filled = [option.format(here=tmp_path, data=dataset) for option in options]
    assert main(["nano", "hm?", *filled]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_what_can_be_seen_without_a_checkpoint_is_checked_before_one_is_fetched(tmp_path, capsys):
    assert main(["someone/absent", "hm?"]) == 2
    assert "Give --image FILE" in capsys.readouterr().err


def test_options_may_stand_between_questions(samples, tmp_path, capsys):
    samples[0].images[0].save(tmp_path / "picture.png")
    assert main(["nano", "is there a cube?", f"--image={tmp_path / 'picture.png'}", "is there a ball?"]) == 0
    assert capsys.readouterr().out.splitlines()[::2] == ["is there a cube?", "is there a ball?"]


class Interrupted:
    def isatty(self):
        return False

    def __iter__(self):
        raise KeyboardInterrupt


def test_an_interrupted_conversation_ends_quietly(dataset, monkeypatch):
    monkeypatch.setattr("sys.stdin", Interrupted())
    assert main(["nano", f"--dataset={dataset}"]) == 130
