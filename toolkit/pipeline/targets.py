"""``toolkit.targets``: the devices that ship with Edgekit."""

from __future__ import annotations

from toolkit import resources
from toolkit.config import Target


def targets() -> tuple[Target, ...]:
    """Returns every shipped target.

    Raises:
        ConfigError: A target file is damaged.
        SetupError: The installation lacks its data folder.
    """
    return tuple(resources.load_target(name) for name in resources.target_names())
