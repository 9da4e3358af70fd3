"""How long the command line and the import keep a user waiting before anything happens."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import Figure, Samples, differences, edgekit, timed, turns

PER_ROUND = 7
HELP_SECONDS = 0.25
IMPORT_MS = 50.0


def measure(rounds: int) -> list[Figure]:
    """Times ``edgekit --help`` and what ``import toolkit`` adds to a bare interpreter."""
    commands = {
        "bare": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import toolkit"],
        "help": edgekit("--help"),
    }
    script = shutil.which("edgekit", path=str(Path(sys.executable).parent))
    if script:
        commands["script"] = [script, "--help"]
    samples = Samples()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        for command in commands.values():
            timed(command, log)  # compiles to bytecode, fills the page cache
        for rival in turns(list(commands), rounds * PER_ROUND):
            samples.add(rival, timed(commands[rival], log))
    added_ms = [1000 * seconds for seconds in differences(samples.seconds("import"), samples.seconds("bare"))]
    found = [
        Figure("startup.interpreter", "s", samples.seconds("bare"), "python -c pass, for comparison"),
        Figure("startup.import", "ms", added_ms, "what `import toolkit` adds to it, pair by pair", at_most=IMPORT_MS),
        Figure("startup.help", "s", samples.seconds("help"), "python -m toolkit --help", at_most=HELP_SECONDS),
    ]
    if script:
        found.append(Figure("startup.script", "s", samples.seconds("script"), "edgekit --help, the installed command", at_most=HELP_SECONDS))
    return found
