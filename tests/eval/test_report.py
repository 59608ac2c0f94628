"""Tables, figures and the page say what the comparison holds, and the page needs nothing but itself."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from aegis_eval.facts import shown_commands
from aegis_eval.films import FILMS, chosen_films
from aegis_eval.page import render_page
from aegis_eval.plots import inner_plots, mean_curve, mean_layer_curve
from aegis_eval.report import write_reports
from aegis_eval.run_result import Curve, LayerCurve
from aegis_eval.success import eval_command, read_rollouts
from aegis_eval.tables import (
    difference_cells,
    family_cells,
    markdown,
    parts,
    short_cells,
    spreadsheet,
    summary_cells,
    task_cells,
)
from aegis_eval.tradeoffs import pareto_front, stretched, tradeoffs, unstretched

from .studies import ORIGIN, made_up_comparison

BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("films") / "episode.mp4"
    path.write_bytes(b"\x00not really a film\xff" * 50)
    return path


@pytest.fixture(scope="module")
def comparison(film):
    return made_up_comparison(arms=("naive", "gradient", "subspace"), seeds=(1000, 1001), videos=[film.name] * 6)


@pytest.fixture(scope="module")
def single():
    """Like the demo: one learning rate, one seed."""
    return made_up_comparison(arms=("naive", "gradient", "subspace"), rates=(1e-3,), seeds=(1000,))


@pytest.fixture(scope="module")
def page(comparison, film) -> str:
    return render_page(comparison, ORIGIN, folder=film.parent)


class Loads(HTMLParser):
    """Collects everything that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, str]] = []

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
    assert not re.search(r"<(link|iframe|object|embed)\b|<script [^>]*src", page)


def test_the_page_follows_the_readers_colours(page):
    assert "prefers-color-scheme: dark" in page
    assert "var(--arm-0)" in page and "var(--family-0)" in page
    # No stand-in colour of a figure is left.
    assert not re.search(r"#0(?:[1-3]0[1-3]0[1-3]|a0[12]0[1-8])\b", page)


def test_the_page_escapes_what_it_shows(page):
    assert "--x=&lt;y&gt;" in page
    assert "--x=<y>" not in page


def test_figures_share_no_ids(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_page_says_whether_it_is_partial(page, film):
    assert "Partial:" not in page
    partial = made_up_comparison(arms=("naive", "lora"), rates=(1e-3,), seeds=(1000, 1001), missing=1)
    assert "Partial: 3 of 4 runs" in render_page(partial, ORIGIN, folder=film.parent)


def test_the_page_says_what_its_intervals_cover(page, single, film):
    assert "redraws seeds" in page
    of_one = render_page(single, ORIGIN, folder=film.parent)
    assert "there is one seed an arm" in of_one and "redraws seeds" not in of_one


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_the_pages_script_sorts_its_tables_without_an_error(page, tmp_path):
    probe = """<script>
    window.onerror = (message) => { document.title = "error " + message; };
    const table = document.querySelector("table.sortable");
    const column = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[1].textContent));
    const before = column().join();
    table.tHead.rows[0].cells[1].click(); const down = column();
    table.tHead.rows[0].cells[1].click(); const up = column();
    table.tHead.rows[0].cells[1].click();
    const sorted = (values, sign) => values.every((v, i) => i === 0 || sign * (v - values[i - 1]) >= 0);
    document.body.dataset.result = [sorted(down, -1), sorted(up, 1), column().join() === before].join();
    </script>"""
    # The handler goes in first, so that an error of the page's own script is seen too.
    catcher = "<head><script>window.onerror = (m) => { document.documentElement.dataset.error = m; };</script>"
    file = tmp_path / "page.html"
    file.write_text(page.replace("<head>", catcher, 1).replace("</body>", probe + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    dumped = subprocess.run([BROWSER, *options, file.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert 'data-ready="yes"' in dumped
    assert "data-error" not in dumped
    assert 'data-result="true,true,true"' in dumped


def test_films_are_the_first_episodes_of_the_first_seed_in_turn_of_the_tasks(comparison, film, tmp_path):
    chosen = chosen_films(comparison, folder=film.parent)
    assert [row.arm.name for row, _ in chosen] == ["naive", "gradient", "subspace"]
    assert all(len(films) == FILMS and row.lr == 1e-3 for row, films in chosen)
    assert [one.told for one in chosen[0][1]] == ["“touch the red cube”", "“lift the red cube”"] * 2
    assert chosen_films(comparison, folder=tmp_path) == []  # the films are not there: results of another machine


def test_the_front_holds_what_no_other_arm_exceeds():
    points = [(1.0, 0.2), (0.9, 0.6), (0.9, 0.5), (0.5, 0.6), (0.4, 0.8)]
    assert pareto_front(points) == [(1.0, 0.2), (0.9, 0.6), (0.4, 0.8)]


def test_there_is_a_trade_off_for_each_set_and_a_panel_for_each_rate(comparison, single):
    plots = tradeoffs(comparison)
    assert len(plots) == 2 and all(plot.wide for plot in plots)
    assert plots[0].svg.count("learning rate 0.0003") == 1
    assert [plot.wide for plot in tradeoffs(single)] == [False, False]


def test_many_arms_are_numbered_and_named_below():
    few, many = ([f"arm{i}" for i in range(count)] for count in (12, 13))
    named, numbered = (tradeoffs(made_up_comparison(arms=arms, seeds=(1000,)))[0].svg for arms in (few, many))
    texts = [re.findall(r"<text[^>]*>([^<]+)</text>", svg) for svg in (named, numbered)]
    assert all(texts[0].count(arm.capitalize()) == 2 for arm in few)  # in each panel
    for place, arm in enumerate(many, start=1):
        assert texts[1].count(str(place)) == 2
        assert [text.split() for text in texts[1] if arm.capitalize() in text.split()] == [
            [str(place), arm.capitalize()]
        ]


def test_the_scale_of_what_is_kept_tells_small_losses_apart_and_has_room_for_gains():
    kept = np.array([0.0, 0.9, 0.99, 0.999, 1.0, 1.02])
    places = stretched(kept)
    assert unstretched(places) == pytest.approx(kept)
    assert (np.diff(places) > 0).all()
    nineties, nines = places[2] - places[1], places[3] - places[2]
    assert nineties > 2 > nines > 1  # ten per cent to one, and one to a tenth: neither hides the other


def test_a_figure_without_data_is_left_out(single):
    assert len(inner_plots(single)) == 4
    without = made_up_comparison(arms=("naive", "lora"), rates=(1e-3,), seeds=(1000,))
    assert len(inner_plots(without)) == 3  # neither of them projects


def test_curves_are_averaged_over_the_steps_that_all_seeds_have():
    assert mean_curve([Curve([1, 2, 3], [1.0, 2.0, 3.0]), Curve([2, 3], [4.0, 5.0])]) == Curve([2, 3], [3.0, 4.0])
    assert mean_curve([]) == Curve()
    layers = [LayerCurve([1], ["a", "b"], [[1.0, 2.0]]), LayerCurve([1], ["a", "b"], [[3.0, 4.0]])]
    assert mean_layer_curve(layers) == LayerCurve([1], ["a", "b"], [[2.0, 3.0]])


def test_tables_agree_with_the_comparison(comparison):
    cells = summary_cells(comparison)
    assert len({len(row) for row in cells}) == 1
    assert [row[0] for row in cells[1:4]] == ["untouched", "Naive, 0.0003", "Naive, 0.001"]
    success = cells[0].index("success shown (%)")
    found = comparison.rows[0].success["shown"]
    value, interval, seeds = parts(cells[2][success])
    assert value == f"{100 * found.value:.1f}"
    assert interval == f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"
    assert seeds == f"({', '.join(f'{100 * v:.1f}' for v in found.by_seed.values())})"
    over = cells[0].index("success shown, over Naive (points)")
    assert cells[2][over] == "–"  # the baseline is not compared with itself
    assert cells[4][over].startswith(("+", "-"))


def test_retention_is_accuracy_over_that_of_the_untouched_backbone(single):
    row = single.rows[0]
    for family, kept in row.retention["tabletop"].items():
        if family != "worst":
            expected = row.vqa["tabletop"][family].value / single.untouched["tabletop"][family].value
            assert kept.value == pytest.approx(expected)
    families = [kept.value for name, kept in row.retention["tabletop"].items() if name not in ("all", "worst")]
    assert row.retention["tabletop"]["worst"].value == min(families)


def test_success_is_told_by_task_and_set(comparison):
    cells = task_cells(comparison)
    assert cells[0][1:] == [f"{t}, {s} (%)" for s in ("shown", "never_shown") for t in ("touch", "lift")]
    row = comparison.rows[0]
    tasks = [row.tasks["shown"][task].value for task in ("touch", "lift")]
    assert row.success["shown"].value == pytest.approx(sum(tasks) / 2)


def test_differences_and_families_have_a_row_an_arm_and_rate(comparison):
    assert len(difference_cells(comparison)) == 1 + 4  # without the baseline
    assert len(family_cells(comparison, "tabletop")) == 1 + 1 + 6  # with the untouched backbone
    assert len(family_cells(comparison, "tabletop", retention=True)) == 1 + 6


def test_the_terminals_table_is_a_part_of_the_whole_one(comparison):
    heading = short_cells(comparison)[0]
    assert heading == [
        "arm",
        "VQA nano_scenes (%)",
        "VQA tabletop (%)",
        "success shown (%)",
        "success never_shown (%)",
        "action loss",
        "ms a step",
    ]


def test_markdown_columns_line_up(comparison):
    lines = markdown(summary_cells(comparison)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].count("-:") == lines[0].count("|") - 2


def test_the_spreadsheet_has_a_row_a_run_and_one_an_arm_and_rate(comparison):
    rows = list(csv.DictReader(spreadsheet(comparison).splitlines()))
    assert len(rows) == 1 + 12 + 6
    pooled = next(row for row in rows if row["arm"] == "naive" and row["seed"] == "all")
    single = [row for row in rows if row["arm"] == "naive" and row["lr"] == pooled["lr"] and row["seed"] != "all"]
    assert float(pooled["success_shown_low"]) < float(pooled["success_shown"]) < float(pooled["success_shown_high"])
    mean = sum(float(row["vqa_tabletop_colour"]) for row in single) / 2
    assert float(pooled["vqa_tabletop_colour"]) == pytest.approx(mean, abs=1e-5)


def test_every_command_is_shown_once(comparison):
    commands, note = shown_commands(comparison)
    assert len({one.command for one in commands}) == len(commands)
    assert "first seed" in note


def test_all_files_are_written(comparison, tmp_path):
    page = write_reports(comparison, ORIGIN, tmp_path)
    assert page == tmp_path / "index.html"
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["runs_done"], len(content["rows"]), len(content["runs"])) == (12, 6, 12)
    assert ORIGIN.command in (tmp_path / "table.md").read_text()
    assert (tmp_path / "table.csv").stat().st_size > 500


def test_rollouts_are_read_by_task_in_the_order_of_their_seeds(tmp_path):
    def task(group, number, successes):
        return {"task_group": group, "task_id": number, "metrics": {"successes": successes, "video_paths": ["a.mp4"]}}

    tasks = [task("touch", 0, [True, False, True]), task("suite", 0, [True]), task("suite", 1, [False])]
    (tmp_path / "eval_info.json").write_text(json.dumps({"per_task": tasks}))
    found = read_rollouts(tmp_path)
    assert {name: one.successes for name, one in found.items()} == {
        "touch": [True, False, True],
        "suite_0": [True],
        "suite_1": [False],
    }
    with pytest.raises(FileNotFoundError, match="lerobot-eval"):
        read_rollouts(tmp_path / "absent")


def test_arms_are_rolled_out_from_the_same_seed_with_the_same_batches(tmp_path):
    def command(policy):
        return eval_command(
            policy, out=tmp_path, episodes=5, start_seed=7, environments=10, environment={"type": "aegis_tabletop"}
        )

    assert command("a")[2:] == command("b")[2:]
    assert {"--seed=7", "--eval.n_episodes=5", "--eval.batch_size=5", "--env.type=aegis_tabletop"} <= set(command("a"))
