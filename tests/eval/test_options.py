"""What LeRobot's commands would refuse hours later is refused before anything is made."""

from pathlib import Path

import pytest

from aegis_eval.options import require_backbone, require_options
from aegis_eval.study import make_study, read_study

from .studies import study_content

STUDIES = sorted((Path(__file__).parents[2] / "configs/compare").glob("*.yaml"))


def studied(*, arm=None, rollouts=None):
    content = study_content(("naive", "subspace"))
    content["arms"]["subspace"]["options"] |= arm or {}
    content["rollouts"]["sets"]["never_shown"] |= rollouts or {}
    return make_study(content)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_shipped_studies_pass(file):
    require_options(read_study(file))
    require_options(read_study(file, quick=True))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rollouts": {"kind": "all"}}, "rollouts.sets.never_shown: The fields `kind` are not valid"),
        ({"rollouts": {"objects": 9}}, "rollouts.sets.never_shown: objects must be 2 to 5"),
        ({"rollouts": {"objects": "many"}}, "`objects`: Couldn't parse 'many' into an int"),
        ({"rollouts": {"type": "aegis_tablecloth"}}, "rollouts.sets.never_shown: .*aegis_tablecloth"),
        ({"arm": {"policy.knowlege": "none"}}, "arms.subspace.options: `policy`: The fields `knowlege` are not valid"),
        ({"arm": {"policy.knowledge": "some"}}, "arms.subspace.options: knowledge must be one of .*: got 'some'"),
        ({"arm": {"peft.r": "x"}}, "arms.subspace.options: `peft.r`: Couldn't parse 'x' into an int"),
        (
            {"arm": {"policy.energy": "none"}},
            "arms.subspace.options: `policy.energy`: Couldn't parse 'none' into a float",
        ),
        ({"arm": {"polcy.knowledge": "none"}}, "arms.subspace.options: The fields `polcy` are not valid"),
    ],
)
def test_a_wrong_option_is_named_with_its_arm_or_set(changed, told):
    with pytest.raises(ValueError, match=told):
        require_options(studied(**changed))


def test_values_are_written_as_on_a_command_line():
    require_options(studied(arm={"policy.energy": "null", "policy.epsilon": "1e-1", "policy.projection": "subspace"}))
    require_options(studied(arm={"policy.image_options": '{"do_resize": true}', "peft": None, "peft.r": 8}))


def test_what_lerobot_reads_from_the_command_line_itself_is_left_to_it():
    require_options(studied(arm={"policy.path": "someone/policy"}))
    require_options(studied(rollouts={"type": "somebodys", "discover_packages_path": "somebodys_environments"}))


def test_options_of_the_probe_are_those_of_aegis_probe():
    content = study_content(("naive",))
    content["arms"]["again"] = {"of": "naive", "probe_options": {"batch_size": 7}}
    with pytest.raises(ValueError, match=r"arms\.again\.probe_options: .*unrecognized arguments: --batch_size=7"):
        require_options(make_study(content))
    content["arms"]["again"]["probe_options"] = {"batch-size": 7}
    require_options(make_study(content))


def test_a_backbone_that_is_not_there_is_told_before_anything_is_recorded(tmp_path):
    def require(backbone):
        require_backbone(make_study(study_content(("naive",)) | {"backbone": str(backbone)}))

    require("nano")
    require("HuggingFaceTB/SmolVLM2-500M-Video-Instruct")  # only the hub knows
    (tmp_path / "config.json").write_text("{}")
    require(tmp_path)
    for absent in ("outputs/mini/mini_vlm", "mini", tmp_path.parent):
        with pytest.raises(ValueError, match=r"backbone must be 'nano', a folder .* none of them\. Make or fetch it"):
            require(absent)
