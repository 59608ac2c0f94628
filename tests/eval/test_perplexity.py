"""Perplexity in a comparison: what arms make of passages beside what they answer."""

import csv
import io
import json
from dataclasses import replace
from math import exp, log

import pytest

from aegis_eval.gather import _read_probes
from aegis_eval.page import render_page
from aegis_eval.probe import make_report
from aegis_eval.probes import find_probe
from aegis_eval.results import compare_results
from aegis_eval.run_result import PassageResult, ProbeResult, read_result
from aegis_eval.runs import plan_runs
from aegis_eval.scoring import Score
from aegis_eval.study import make_study
from aegis_eval.surprise import Surprise, perplexity_estimate
from aegis_eval.tables import short_cells, spreadsheet, summary_cells

from .studies import ORIGIN, made_up_pretrained, made_up_run, study_content

TOKENS = [100, 120, 80, 100]
FAMILIES = ["story", "story", "science", "science"]
BEFORE = [300.0, 420.0, 240.0, 330.0]  # nats


def passages(times: float) -> dict[str, PassageResult]:
    """Each token `times` as surprising as before, in perplexity."""
    nats = [one + count * log(times) for one, count in zip(BEFORE, TOKENS, strict=True)]
    return {"prose": PassageResult(FAMILIES, nats, TOKENS)}


@pytest.fixture(scope="module")
def comparison():
    study = make_study(study_content(("naive", "lora"), rates=(1e-3,), seeds=(1000, 1001)))
    times = {("naive", 1000): 2.0, ("naive", 1001): 4.5, ("lora", 1000): 1.0, ("lora", 1001): 1.0}
    runs = [
        replace(made_up_run(run.arm.name, run.lr, run.seed), passages=passages(times[run.arm.name, run.seed]))
        for run in plan_runs(study)
    ]
    pretrained = replace(made_up_pretrained(), passages=passages(1.0))
    return compare_results(study, runs, pretrained, planned=len(runs))


def test_a_ratio_of_perplexities_is_formed_passage_by_passage():
    found = perplexity_estimate({0: passages(2.0)["prose"].nats}, TOKENS, FAMILIES, before=BEFORE)
    # each passage is twice as surprising a token, so that there is nothing to be unsure of
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


def test_seeds_are_averaged_as_nats(comparison):
    naive, lora = comparison.rows
    before = exp(sum(BEFORE) / sum(TOKENS))
    assert naive.perplexity["prose"].value == pytest.approx(3 * before)  # the geometric mean of 2 and 4.5
    assert naive.perplexity_ratio["prose"].by_seed == pytest.approx({1000: 2.0, 1001: 4.5})
    assert naive.perplexity_ratio["prose"].low < 3 < naive.perplexity_ratio["prose"].high
    assert lora.perplexity_ratio["prose"].value == pytest.approx(1)
    assert comparison.untouched_perplexity["prose"].value == pytest.approx(before)


def test_tables_page_and_spreadsheet_show_it(comparison, tmp_path):
    cells = summary_cells(comparison)
    place, ratio = (cells[0].index(name) for name in ("perplexity prose", "perplexity prose / untouched"))
    assert cells[1][place].startswith(f"{exp(sum(BEFORE) / sum(TOKENS)):.2f} [") and cells[1][ratio] == "–"
    assert cells[2][ratio].startswith("3.000 [") and cells[2][ratio].endswith("(2.000, 4.500)")
    assert "perplexity prose" in short_cells(comparison)[0]
    assert "perplexity prose / untouched" not in short_cells(comparison)[0]
    page = render_page(comparison, ORIGIN, folder=tmp_path)
    assert "<dt>perplexity, prose</dt>" in page and "prose v1, 20 passages" in page
    records = list(csv.DictReader(io.StringIO(spreadsheet(comparison))))
    assert [float(r["perplexity_ratio_prose"]) for r in records if r["arm"] == "naive"] == pytest.approx([2, 4.5, 3])


def test_results_without_passages_are_tables_without_the_columns():
    study = make_study(study_content(("naive",), rates=(1e-3,), seeds=(1000,)))
    run = made_up_run("naive", 1e-3, 1000)
    head, *_ = summary_cells(compare_results(study, [run], made_up_pretrained(), planned=1))
    assert not any("perplexity" in heading for heading in head)


def test_what_the_probe_wrote_is_kept_and_read_again(tmp_path):
    probes = [find_probe("facts", count=2), find_probe("prose", count=4)]
    scores = {
        "facts": Score(("capitals", "science"), (True, False)),
        "prose": Surprise(tuple(FAMILIES), ("a", "b", "c", "d"), tuple(BEFORE), tuple(TOKENS)),
    }
    report = make_report("x", probes, scores, fingerprint="y", adapters="on", seconds=1.0)
    (tmp_path / "probe.json").write_text(json.dumps(report))
    found = _read_probes(tmp_path / "probe.json")
    assert found["probes"] == {"facts": ProbeResult(["capitals", "science"], "10")}
    assert found["passages"] == passages(1.0)
    run = replace(made_up_run("naive", 1e-3, 1000), **found)
    run.write(tmp_path / "run.json")
    assert read_result(tmp_path / "run.json").passages == passages(1.0)


def test_a_study_may_read_prose_but_not_prose_alone():
    content = study_content(("naive",))
    make_study(content | {"probes": {"names": ["nano_scenes", "prose"]}})
    with pytest.raises(ValueError, match=r"right or wrong.*received prose"):
        make_study(content | {"probes": {"names": ["prose"]}})
