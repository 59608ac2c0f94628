"""What is refused, and how; none of it needs metaworld."""

import pytest
from lerobot.envs.factory import make_env_config

import aegis_envs.metaworld.configuration  # noqa: F401  registers `aegis_metaworld`
from aegis_envs.metaworld.requirements import check_versions
from aegis_envs.metaworld.tasks import MT10, descriptions, groups, parse_tasks


def test_tasks_are_named_one_by_one_or_in_groups_and_each_comes_once():
    assert parse_tasks("push-v3, metaworld-reach-v3,push-v3") == ("push-v3", "reach-v3")
    assert parse_tasks("mt10") == MT10
    assert parse_tasks("reach-v3,mt10") == MT10
    assert set(parse_tasks("easy,medium,hard,very_hard")) == set(parse_tasks("mt50")) == set(descriptions())
    assert len(descriptions()) == 50
    assert set(MT10) <= set(groups()["mt50"])


def test_an_unknown_task_is_refused_with_those_near_to_it():
    with pytest.raises(ValueError, match=r"50 tasks.*mt10.*got 'reach-v2'. Near to it: reach-v3"):
        parse_tasks("reach-v2")
    with pytest.raises(ValueError, match="at least one"):
        parse_tasks(" , ")
    with pytest.raises(ValueError, match="got 'fly'"):
        make_env_config("aegis_metaworld", task="fly")


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ({"image_size": 481}, "48 to 480 pixels; got 481"),
        ({"image_size": 47}, "48 to 480 pixels; got 47"),
        ({"rendering": "slow"}, "fast, shadows, faithful; got 'slow'"),
        ({"episode_length": 501}, "1 to 500.*got 501"),
        ({"obs_type": "state"}, "Unsupported obs_type: state"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_made(option, rule):
    with pytest.raises(ValueError, match=rule):
        make_env_config("aegis_metaworld", **option)


def test_what_is_missing_or_too_new_is_said_with_what_to_install():
    check_versions(metaworld="3.0.0", mujoco="3.16.0")
    with pytest.raises(ImportError, match=r"not installed. pip install 'lerobot_policy_aegis_vla\[metaworld\]'"):
        check_versions(metaworld=None, mujoco="3.16.0")
    for version in ("3.17.0", "4.0.0"):
        with pytest.raises(ImportError, match=rf"older than 3.17.*Installed: mujoco {version}.*'mujoco<3.17'"):
            check_versions(metaworld="3.0.0", mujoco=version)
