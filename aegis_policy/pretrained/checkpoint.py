"""A checkpoint of another LeRobot policy: its files, in a folder or on the hub, and nothing of what they mean."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from lerobot.configs import PreTrainedConfig
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.hub import extract_commit_hash

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "policy_preprocessor.json"
# LeRobot wraps its networks in a policy; weights converted from openpi come without the wrapper's name.
_WRAPPER = "model."


class Weights(Mapping[str, Tensor]):
    """The checkpoint's tensors by their name inside the network, read one at a time and as they were stored."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._stored = {name.removeprefix(_WRAPPER): name for name in handle.keys()}  # noqa: SIM118  no mapping

    def __getitem__(self, name: str) -> Tensor:
        return self._handle.get_tensor(self._stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


@dataclass(frozen=True)
class Checkpoint:
    """Where another policy lies.

    Attributes:
        path: Folder or hub id.
        revision: Commit, tag or branch of a hub id.
    """

    path: str
    revision: str | None = None

    def file(self, name: str) -> Path:
        """The local path of one of its files, fetched from the hub if need be.

        Raises:
            FileNotFoundError: If there is none.
        """
        if Path(self.path).is_dir():
            found = Path(self.path) / name
            if found.is_file():
                return found
            raise FileNotFoundError(self._lacks(name, f"it has {sorted(p.name for p in Path(self.path).iterdir())}"))
        try:
            return Path(hf_hub_download(self.path, name, revision=self.revision))
        except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
            raise FileNotFoundError(self._lacks(name, str(error).rstrip("."))) from error

    def _lacks(self, name: str, detail: str) -> str:
        return (
            f"init_from must be the folder or hub id of a LeRobot policy with {CONFIG}, {WEIGHTS} and {PREPROCESSOR}; "
            f"{self.path!r} has no {name}: {detail}. A training run keeps them in "
            "OUTPUT_DIR/checkpoints/last/pretrained_model."
        )

    @property
    def commit(self) -> str | None:
        """The commit of the hub that its files come from; None for a folder."""
        return None if Path(self.path).is_dir() else extract_commit_hash(str(self.file(CONFIG)), None)

    @property
    def policy_type(self) -> str:
        """What LeRobot calls the policy, such as `pi0`."""
        return str(json.loads(self.file(CONFIG).read_text()).get("type"))

    def config(self) -> Any:
        """The policy's own configuration."""
        return PreTrainedConfig.from_pretrained(self.file(CONFIG).parent)

    @contextmanager
    def weights(self) -> Iterator[Weights]:
        """Opens the tensors."""
        with safe_open(self.file(WEIGHTS), framework="pt") as handle:
            yield Weights(handle)

    def tokenizer(self) -> str:
        """Folder or hub id of the tokenizer that the policy's preprocessor uses.

        Raises:
            ValueError: If its preprocessor names none.
        """
        for step in self._steps():
            if step.get("registry_name") == "tokenizer_processor" and step["config"].get("tokenizer_name"):
                return str(step["config"]["tokenizer_name"])
        raise ValueError(
            f"The preprocessor of {self.path} names no tokenizer. Say where tokenizer and image processor are: "
            "--policy.backbone=FOLDER_OR_HUB_ID."
        )

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """What its preprocessor normalises with: feature -> statistic -> value; empty if it keeps none."""
        statistics: dict[str, dict[str, Tensor]] = {}
        for step in self._steps():
            if step.get("registry_name") == "normalizer_processor" and step.get("state_file"):
                for name, value in load_file(self.file(step["state_file"])).items():
                    feature, _, statistic = name.rpartition(".")
                    statistics.setdefault(feature, {})[statistic] = value
        return statistics

    def _steps(self) -> list[dict[str, Any]]:
        return json.loads(self.file(PREPROCESSOR).read_text())["steps"]
