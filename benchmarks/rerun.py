"""A second run, when nothing has changed: everything but the latency figures comes from the cache."""

from __future__ import annotations

import json

from benchmarks import product
from benchmarks.figures import Figure

PER_ROUND = 2
MOST_SECONDS = 5.0


def measure(rounds: int) -> list[Figure]:
    """Times ``edgekit run`` on a filled cache; the latency steps run one after the other, so their seconds can be subtracted."""
    folder = product.finished()
    whole, rest = [], []
    for _ in range(rounds * PER_ROUND):
        seconds = product.run(folder).seconds
        stages = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))["stages"]
        fresh = [stage["step"] for stage in stages if stage["status"] != "cached" and not stage["step"].startswith("benchmark:")]
        if fresh:
            raise RuntimeError(f"not from the cache: {', '.join(fresh)}")
        whole.append(seconds)
        rest.append(seconds - sum(stage["seconds"] for stage in stages if stage["status"] != "cached"))
    return [
        Figure("rerun.whole", "s", whole, "edgekit run examples/digits, everything cached, latency measured anew"),
        Figure("rerun.without_latency", "s", rest, "the same less the seconds of the latency steps", at_most=MOST_SECONDS),
    ]
