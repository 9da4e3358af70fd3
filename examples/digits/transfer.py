"""What printed digits teach about handwritten ones: ``python examples/digits/transfer.py``; ``--epochs 60`` for longer training.

Five times, ten labelled samples of each digit are drawn, and the network is trained on them twice, for as many epochs: from weights
that were trained on rendered fonts, and from scratch.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import toolkit

HERE = Path(__file__).resolve().parent
SEEDS = range(5)
EPOCHS = "epochs = 5\n"
STARTS = 'weights = "edgekit-out/glyphs.safetensors"\n'
# What starts from nothing has further to go: it learns at the rate of edgekit.toml, with which it comes further than with the other.
SCRATCH = [(STARTS, ""), ("learning_rate = 1e-3", "learning_rate = 3e-3")]


def main(seeds=SEEDS, handwritten=()):
    """Trains and prints a table; ``handwritten`` are further changes ``(old, new)`` of ``transfer.toml``."""
    sys.path.insert(0, str(HERE))
    with tempfile.TemporaryDirectory() as work:
        start = toolkit.finetune(project(Path(work) / "printed", "pretrain.toml")).weights
        ways = {"transfer": [(STARTS, f"weights = '{start}'\n")], "scratch": SCRATCH}
        runs = [[trained(Path(work) / f"{name}-{seed}", seed, *own, *handwritten) for name, own in ways.items()] for seed in seeds]
    print("| seed | transfer | from scratch | difference |\n|---|---|---|---|")
    for seed, (transfer, scratch) in zip(seeds, runs, strict=True):
        print(f"| {seed} | {transfer:.2%} | {scratch:.2%} | {100 * (transfer - scratch):+.2f} pp |")
    transfer, scratch = zip(*runs, strict=True)
    means = spread(transfer), spread(scratch), interval([one - other for one, other in runs])
    print(f"| mean (standard deviation), n={len(runs)} seeds | {' | '.join(means)} |")


def trained(folder, seed, *changes):
    """Trains on one draw of samples and returns the share of held-out digits that is read right."""
    import digits
    import torch
    from safetensors.torch import load_file

    model = digits.build()
    model.load_state_dict(load_file(toolkit.finetune(project(folder, "transfer.toml", ("seed = 0", f"seed = {seed}"), *changes)).weights))
    held = digits.load()["eval"]
    with torch.no_grad():
        picked = model.eval()(torch.from_numpy(held["image"])).argmax(dim=1).numpy()
    return float((picked == held["label"]).mean())


def project(folder, file, *changes):
    """Copies one of the projects with changes ``(old, new)`` of its text."""
    folder.mkdir()
    for code in ("digits.py", "glyphs.py"):
        shutil.copy(HERE / code, folder)
    text = (HERE / file).read_text(encoding="utf-8")
    for old, new in changes:
        if old not in text:
            raise SystemExit(f"{file} has no {old!r} any more")
        text = text.replace(old, new)
    (folder / "edgekit.toml").write_text(text, encoding="utf-8")
    return folder


def spread(values):
    """Returns mean and standard deviation."""
    return f"{statistics.mean(values):.2%} ({100 * statistics.stdev(values):.2f} pp)" if len(values) > 1 else f"{values[0]:.2%}"


def interval(differences):
    """Returns the mean of paired differences with Student's 95 % interval over the seeds."""
    from scipy.stats import t

    mean, n = statistics.mean(differences), len(differences)
    if n < 2:
        return f"{100 * mean:+.2f} pp"
    half = t.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5
    return f"{100 * mean:+.2f} pp [{100 * (mean - half):+.2f}, {100 * (mean + half):+.2f}]"


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--epochs", default=5)
    try:
        main(handwritten=[(EPOCHS, f"epochs = {options.parse_args().epochs}\n")])
    except toolkit.ToolkitError as error:
        raise SystemExit(f"error: {error}\n  -> {error.hint}") from None
