"""The results that are kept belong to the studies as they are, and the document shows all of them."""

from pathlib import Path

import pytest

from aegis_eval.compare import make_place
from aegis_eval.execution import read_pretrained, read_results
from aegis_eval.runs import plan_runs
from aegis_eval.study import read_study

ROOT = Path(__file__).parents[2]


STUDIES = sorted(folder.name for folder in (ROOT / "results").iterdir() if folder.is_dir())


@pytest.fixture(scope="module", params=STUDIES)
def place(request, tmp_path_factory):
    study = read_study(ROOT / f"configs/compare/{request.param}.yaml")
    results = ROOT / "results" / request.param
    return make_place(study, out=tmp_path_factory.mktemp("out"), results=results, workers=1, threads=1)


def test_every_kept_result_is_a_run_of_the_study_with_its_present_settings(place):
    found = read_results(place, plan_runs(place.study))  # refuses results of other settings
    kept = {path.stem for path in place.results.glob("*.json")}
    assert read_pretrained(place) is not None
    assert kept == {*found, "pretrained"}


def test_the_document_was_made_from_as_many_runs_as_there_are(place):
    planned = plan_runs(place.study)
    done = len(read_results(place, planned))
    text = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    name = place.results.name
    remedy = f"aegis-compare configs/compare/{name}.yaml --results results/{name} --report-only --into docs/evidence.md"
    count = f"{'All' if done == len(planned) else f'{done} of'} {len(planned)} runs have ended."
    assert f"<!-- {name}: progress -->\n{count}" in text, remedy
