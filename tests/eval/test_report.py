"""Tables, plots and the page say what the study holds, and the page needs nothing but itself."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from aegis_eval.page import render_page
from aegis_eval.plots import all_plots
from aegis_eval.results import read_study
from aegis_eval.success import eval_command, read_rollouts
from aegis_eval.tables import difference_cells, family_cells, markdown, spreadsheet, summary_cells

from .studies import made_up_study


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("films") / "episode.mp4"
    path.write_bytes(b"\x00not really a film\xff" * 50)
    return path


@pytest.fixture(scope="module")
def page(film) -> str:
    study = made_up_study(videos=[film.name] * 6, commands=[("train", "lerobot-train --x=<y>", 3.0)])
    return render_page(study, folder=film.parent)


class Loads(HTMLParser):
    """Collects everything that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.found += [
            (name, value or "")
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "poster", "srcset", "data", "action", "background")
        ]


def test_the_page_loads_nothing(page):
    loads = Loads()
    loads.feed(page)
    assert any(value.startswith("data:video/mp4") for _, value in loads.found)
    assert [value for _, value in loads.found if not value.startswith(("data:", "#"))] == []
    assert "@import" not in page
    assert re.findall(r"url\((?!['\"]?#)[^)]*\)", page) == []
    assert not re.search(r"<(script|link|iframe|object|embed)\b", page)


def test_the_page_follows_the_readers_colours(page):
    assert "prefers-color-scheme: dark" in page
    assert "var(--arm-0)" in page
    # No stand-in colour of a figure is left.
    assert not re.search(r"#0(?:[1-3]0[1-3]0[1-3]|a0[1-6]0[1-6])\b", page)


def test_the_page_escapes_what_it_shows(page):
    assert "--x=&lt;y&gt;" in page
    assert "--x=<y>" not in page


def test_figures_share_no_ids(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_page_shows_the_first_episodes_of_every_arm(page):
    assert page.count("<video") == 3 * 4


def test_a_figure_without_data_is_left_out():
    study = made_up_study()
    assert set(all_plots(study)) == {"vqa", "tradeoff", "layers", "loss"}
    for arm in study.arms:
        arm.layers.clear()
    assert set(all_plots(study)) == {"vqa", "tradeoff", "loss"}


def test_a_study_survives_its_json(tmp_path):
    study = made_up_study()
    study.write(tmp_path / "results.json")
    assert read_study(tmp_path / "results.json") == study


def test_tables_agree_with_the_study():
    study = made_up_study()
    rows = summary_cells(study)
    assert [row[0] for row in rows[1:]] == ["untouched", *[arm.label for arm in study.arms]]
    first = study.arms[0].success
    assert rows[2][3].startswith(f"{100 * first.value:.1f} [{100 * first.low:.1f}, ")
    assert len({len(row) for row in rows}) == 1
    assert family_cells(study, "tabletop")[-1][-1] == "350"
    assert difference_cells(study)[1][-1] == "–"  # the first arm is not compared with itself


def test_markdown_columns_line_up():
    lines = markdown(summary_cells(made_up_study())).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].count("-:") == lines[0].count("|") - 2


def test_the_spreadsheet_holds_numbers_with_their_bounds():
    rows = list(csv.DictReader(spreadsheet(made_up_study()).splitlines()))
    assert [row["arm"] for row in rows] == ["pretrained", "none", "paper", "default"]
    assert rows[0]["success"] == ""
    assert float(rows[1]["success_low"]) < float(rows[1]["success"]) < float(rows[1]["success_high"])
    assert rows[1]["vqa_tabletop_colour_n"] == "50"


def test_rollouts_are_read_in_the_order_of_their_seeds(tmp_path):
    (tmp_path / "eval_info.json").write_text(
        '{"per_task": [{"metrics": {"successes": [true, false, true], "video_paths": ["a.mp4"]}}],'
        ' "overall": {"eval_s": 2.5}}'
    )
    found = read_rollouts(tmp_path)
    assert found.successes == [True, False, True]
    assert (found.success.successes, found.success.trials) == (2, 3)
    with pytest.raises(FileNotFoundError, match="lerobot-eval"):
        read_rollouts(tmp_path / "absent")


def test_arms_are_rolled_out_from_the_same_seed_with_the_same_batches(tmp_path):
    def command(policy):
        return eval_command(
            policy, out=tmp_path, episodes=5, start_seed=7, environments=10, environment={"type": "aegis_tabletop"}
        )

    assert command("a")[2:] == command("b")[2:]
    assert {"--seed=7", "--eval.n_episodes=5", "--eval.batch_size=5", "--env.type=aegis_tabletop"} <= set(command("a"))
