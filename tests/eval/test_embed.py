"""Tables in a document are those of the study that it names, and of no other."""

import pytest

from aegis_eval.compare import main
from aegis_eval.embed import embed_tables
from aegis_eval.tables import difference_cells, family_cells, markdown

from .studies import made_up_comparison

DOCUMENT = """# Evidence
<!-- made_up: {table} -->
an older table
<!-- end -->
Words in between.
<!-- another: success -->
its own
<!-- end -->
"""


@pytest.fixture(scope="module")
def comparison():
    return made_up_comparison(arms=("naive", "gradient", "subspace"), rates=(1e-3,), seeds=(1000, 1001))


def test_a_block_becomes_the_table_and_the_rest_stays(comparison):
    made = embed_tables(DOCUMENT.format(table="differences"), "made_up", comparison)
    assert made == DOCUMENT.format(table="differences").replace(
        "an older table\n", markdown(difference_cells(comparison))
    )
    assert embed_tables(made, "made_up", comparison) == made


def test_a_table_may_be_of_some_arms(comparison):
    made = embed_tables(DOCUMENT.format(table="success, of naive subspace"), "made_up", comparison)
    rows = [line for line in made.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["Naive", "Subspace"]
    assert "success shown" in rows[0] and "retention" not in rows[0]


def test_the_overview_has_what_is_kept_and_what_succeeds_and_no_differences(comparison):
    made = embed_tables(DOCUMENT.format(table="overview"), "made_up", comparison)
    heading = next(line for line in made.splitlines() if line.startswith("| arm"))
    assert heading.count("retention") == 2 and heading.count("success") == 2 and "over" not in heading


def test_every_table_it_names_can_be_asked_for(comparison):
    with pytest.raises(ValueError, match="no table 'smell'") as told:
        embed_tables(DOCUMENT.format(table="smell"), "made_up", comparison)
    names = str(told.value).split("Tables: ")[1].rstrip(".").split(", ")
    assert "prose" not in str(told.value)
    assert {"knowledge", "success", "cost", "tasks", "note", "retention tabletop"} <= set(names)
    for name in names:
        assert "an older table" not in embed_tables(DOCUMENT.format(table=name), "made_up", comparison)
    made = embed_tables(DOCUMENT.format(table="families tabletop"), "made_up", comparison)
    assert markdown(family_cells(comparison, "tabletop")) in made


def test_an_arm_that_there_is_not_and_a_document_without_a_place_are_refused(comparison):
    with pytest.raises(ValueError, match="no arm 'absent'"):
        embed_tables(DOCUMENT.format(table="success, of absent"), "made_up", comparison)
    with pytest.raises(ValueError, match="<!-- other: success -->"):
        embed_tables(DOCUMENT.format(table="success"), "other", comparison)
    with pytest.raises(ValueError, match=r"'success' has no end: write `<!-- end -->`"):
        embed_tables("<!-- made_up: success -->\n" + DOCUMENT.format(table="tasks"), "made_up", comparison)
    with pytest.raises(ValueError, match="no arm 'w2-loss'"):
        embed_tables(DOCUMENT.format(table="success, of naive w2-loss"), "made_up", comparison)


def test_a_document_without_a_place_is_refused_before_anything_runs(tmp_path, capsys):
    document = tmp_path / "empty.md"
    document.write_text("nothing here\n")
    assert main(["configs/compare/demo.yaml", "--out", str(tmp_path / "out"), "--into", str(document)]) == 2
    told = capsys.readouterr().out
    assert "empty.md" in told and "no place for a table of demo" in told
    assert not (tmp_path / "out" / "demonstrations").exists()
