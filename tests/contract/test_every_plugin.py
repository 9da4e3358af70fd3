"""What every plugin must say about itself, whatever it does."""

import subprocess
import sys
from pathlib import Path

import pytest

from toolkit import plugins

ROOT = Path(__file__).resolve().parents[2]
EVERY = [(group, name) for group in plugins.GROUPS for name in plugins.discover(group)]
OWN = {"numpy", "scipy"}  # what Edgekit itself needs: it is always there and imported early

pytestmark = pytest.mark.parametrize(("group", "name"), EVERY, ids=[f"{group}-{name}" for group, name in EVERY])


def test_it_says_what_it_is(group, name):
    plugin = plugins.get(group, name)
    assert plugin.name == name
    assert isinstance(plugin.version, int) and plugin.version >= 1
    for words in (plugin.modules, plugin.distributions):
        assert isinstance(words, tuple) and words and all(isinstance(word, str) for word in words), "its frameworks are a tuple of names"
    assert plugin.extra and isinstance(plugin.extra, str)


def test_installed_modules_come_from_installed_distributions(group, name):
    plugin = plugins.get(group, name)
    if plugins.missing_modules(plugin):
        pytest.skip(f"{name} needs {', '.join(plugins.missing_modules(plugin))}")
    assert "-" not in plugins.versions(plugin).values(), "a distribution whose version nobody knows cannot be part of a cache key"


def test_its_module_does_not_import_its_framework(group, name):
    plugin = plugins.get(group, name)
    code = f"import sys; import {type(plugin).__module__}; print(*[module for module in {plugin.modules!r} if module in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= OWN
