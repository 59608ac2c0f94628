"""A study's file is read whole or refused with what to change."""

from dataclasses import replace

import pytest
import yaml

from aegis_envs.record import parse_options
from aegis_eval.compare import repository_study
from aegis_eval.study import make_study, read_study, record_options

from .studies import study_content


def changed(**sections):
    return study_content() | sections


def test_the_shipped_studies_are_read_and_their_quick_forms_too():
    for name in ("nano", "nano_long", "words", "shapes", "mini", "demo", "metaworld"):
        whole, quick = (read_study(repository_study(name), quick=shrunk) for shrunk in (False, True))
        assert quick.training.steps < whole.training.steps
        assert all(arm in whole.arms for arm in quick.arms)


def test_the_demo_measures_what_it_always_did():
    study = read_study(repository_study("demo"))
    assert study.demonstrations == {"task": "touch", "episodes": 300, "seed": 1000, "objects": 3, "kinds": "shown"}
    assert (study.seeds, study.learning_rates, study.training.steps) == ((1000,), (1e-3,), 1000)
    assert (study.rollouts.episodes, study.rollouts.seed, study.probes.count) == (100, 100_000, 700)
    assert [dict(arm.options) for arm in study.arms] == [
        {"policy.knowledge": "none"},
        {"policy.knowledge": "aegis", "policy.projection": "gradient"},
        {"policy.knowledge": "aegis"},
    ]


@pytest.mark.parametrize("environment", ["aegis_tabletop", "metaworld"])
def test_record_options_are_those_of_the_recorder(environment):
    options = vars(parse_options(["--root=data", f"--env.type={environment}"]))
    known = {name.replace("env_type", "env.type") for name in options} - {"root", "repo_id", "resume"}
    assert set(record_options({"env.type": environment})) == known


def test_demonstrations_of_another_environment_have_its_options():
    demonstrations = {"env.type": "metaworld", "task": "reach-v3", "episodes": 5, "seed": 0, "rendering": "fast"}
    study = make_study(changed(demonstrations=demonstrations))
    assert study.demonstrations == demonstrations
    with pytest.raises(ValueError, match=r"Unknown in demonstrations: objects.*rendering"):
        make_study(changed(demonstrations={**demonstrations, "objects": 3}))
    with pytest.raises(ValueError, match=r"--env.type must be one of aegis_tabletop, metaworld.*'libero'"):
        make_study(changed(demonstrations={**demonstrations, "env.type": "libero"}))


def test_the_first_arm_is_the_baseline_unless_another_is_named():
    assert make_study(changed()).baseline == "naive"
    assert make_study(changed(baseline="lora")).baseline == "lora"


def test_numbers_written_without_a_point_are_numbers():
    content = yaml.safe_load("[1e-3, 3e-4]")
    assert content == ["1e-3", "3e-4"]  # what YAML 1.1 makes of them
    assert make_study(changed(learning_rates=content)).learning_rates == (1e-3, 3e-4)


def test_quick_replaces_what_it_names_and_keeps_the_rest():
    content = changed(quick={"arms": ["lora", "naive"], "training": {"steps": 50}, "seeds": [1001]})
    study = make_study(content, quick=True)
    assert [arm.name for arm in study.arms] == ["naive", "lora"]
    assert (study.training.steps, study.training.probe_freq, study.seeds) == (50, 50, (1001,))
    assert make_study(content).training.steps == 1000


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"learning_rate": [1e-3]}, r"learning_rate\. Known: .*learning_rates"),
        ({"training": {"steps": 10, "log_freq": 5, "save": 5}}, r"Unknown in training: save\. Known: steps"),
        ({"training": {"steps": 0}}, r"training\.steps .*at least 1; received 0"),
        ({"training": {"steps": 10, "log_freq": 20}}, r"log_freq must be at most"),
        ({"training": {"steps": "many"}}, r"training\.steps must be a whole number; received 'many'"),
        ({"learning_rates": ["fast"]}, r"positive numbers; received \['fast'\]"),
        ({"learning_rates": [-1.0]}, "must be positive"),
        ({"learning_rates": [1e-3, 1e-3]}, "twice"),
        ({"seeds": [1.5]}, r"seeds must be a list of whole numbers"),
        ({"seeds": []}, r"seeds must be a list of at least one"),
        ({"demonstrations": {"task": "touch", "seed": 1}}, "Missing in demonstrations: episodes"),
        ({"demonstrations": {"task": "touch", "seed": 1, "episodes": 9, "kind": "x"}}, r"kind\. Known: .*kinds"),
        ({"dataset": {"repo_id": "a/b"}}, "received both"),
        ({"probes": {"names": ["absent"]}}, "nano_scenes"),
        ({"baseline": "absent"}, r"no arm 'absent'.*naive"),
        ({"rollouts": {"sets": {}}}, "at least one set"),
        ({"rollouts": {"sets": {"shown": {"task": "touch"}}}}, "needs `type`"),
        ({"arms": {}}, "at least one arm"),
        ({"arms": {"a/b": {"options": {"x": 1}}}}, "becomes a folder"),
        ({"arms": {"a": {"option": {"x": 1}}}}, r"option\. Known: label, note, options"),
        ({"arms": {"a": {}}}, "needs `options`"),
        ({"arms": {"a": {"options": {"x": 1}, "interpolate": 0.5}}}, "needs `of`"),
        ({"arms": {"a": {"options": {"x": 1}, "anchor": {"count": 0}}}}, r"arms\.a\.anchor\.count must be"),
        ({"anchor": {"count": 9, "token_stride": 0}}, r"anchor\.token_stride must be"),
        ({"arms": {"a": {"options": {"x": 1}, "anchor": {"size": 1}}}}, r"arms\.a\.anchor"),
        ({"arms": {"a": {"options": {"x": 1}, "seeds": [7]}}}, r"must be some of the study's \[1000"),
        ({"arms": {"a": {"options": {"x": 1}, "label": 0.5}}}, r"label of its own, in words; received 0\.5"),
        ({"arms": {"a": {"options": {"x": 1}, "label": "b"}, "b": {"options": {"x": 2}}}}, "label of its own"),
    ],
)
def test_what_makes_no_study_is_refused_with_the_rule_and_the_value(sections, told):
    with pytest.raises(ValueError, match=told):
        make_study(changed(**sections))


@pytest.mark.parametrize(
    ("arm", "told"),
    [
        ({"of": "absent", "interpolate": 0.5}, "no arm 'absent'"),
        ({"of": "naive"}, "the same as 'naive'"),
        ({"of": "naive", "interpolate": 1.5}, r"in \[0, 1\]; received 1.5"),
        ({"of": "naive", "interpolate": 0.5, "options": {"x": 1}}, "leave `options` out"),
        ({"of": "other", "interpolate": 0.5}, "itself of 'naive'"),
        ({"of": "naive", "interpolate": 0.5, "anchor": {"count": 9}}, "leave `anchor` out"),
    ],
)
def test_an_arm_of_another_one_must_change_something_of_a_trained_one(arm, told):
    arms = {"naive": {"options": {"x": 1}}, "other": {"of": "naive", "interpolate": 0.5}, "new": arm}
    with pytest.raises(ValueError, match=told):
        make_study(changed(arms=arms))


def test_a_file_that_is_absent_or_no_yaml_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        read_study(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("title: [")
    with pytest.raises(ValueError, match=r"broken\.yaml is not valid YAML"):
        read_study(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match=r"list\.yaml: a study must be a mapping"):
        read_study(tmp_path / "list.yaml")


def test_quick_without_its_section_is_refused():
    with pytest.raises(ValueError, match="section `quick:`"):
        make_study(changed(), quick=True)


def test_replaced_settings_are_checked_again():
    study = make_study(changed())
    with pytest.raises(ValueError, match=r"training\.steps"):
        replace(study, training=replace(study.training, steps=0))
