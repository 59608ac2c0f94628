"""What LeRobot has to find: the distribution by its name, the policy by convention, our options in its command."""

import subprocess
import sys
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest
from lerobot.configs import PreTrainedConfig
from lerobot.envs.configs import EnvConfig
from lerobot.policies.factory import get_policy_class, make_policy_config
from lerobot.utils.import_utils import register_third_party_plugins

NAME = "lerobot_policy_aegis_vla"


def test_the_distributions_name_is_the_modules_name():
    """LeRobot imports a plugin by the Name of its metadata, so hyphens would hide it."""
    assert distribution(NAME).metadata["Name"] == NAME


def test_discovery_imports_the_plugin_and_registers_policy_and_environment(caplog):
    register_third_party_plugins()
    assert not [r for r in caplog.records if NAME in r.getMessage() and r.levelname == "ERROR"]
    assert "aegis_vla" in PreTrainedConfig.get_known_choices()
    assert {"aegis_tabletop", "aegis_metaworld", "aegis_aloha"} <= set(EnvConfig.get_known_choices())


def test_lerobots_factories_find_config_and_policy():
    register_third_party_plugins()
    assert make_policy_config("aegis_vla", device="cpu").type == "aegis_vla"
    assert get_policy_class("aegis_vla").__name__ == "AegisVLAPolicy"


@pytest.mark.slow
def test_the_stock_training_command_offers_our_options():
    shown = subprocess.run(
        [str(Path(sys.executable).parent / "lerobot-train"), "--policy.type=aegis_vla", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for option in ("--policy.knowledge", "--policy.projection", "--policy.epsilon", "--policy.probe_freq"):
        assert option in shown


@pytest.mark.parametrize("group", ["aegis_policy.vqa_sources", "aegis_policy.monitors", "console_scripts"])
def test_every_entry_point_loads(group):
    ours = [e for e in entry_points(group=group) if e.dist is not None and e.dist.name == NAME]
    assert ours
    for entry in ours:
        assert callable(entry.load())
