"""What the ImageNet weights are worth, and what training all layers is worth: ``python examples/medical-imaging/compare.py``."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import toolkit
from toolkit.stats.proportions import mcnemar_p, paired_difference_interval, proportion_interval
from toolkit.stats.ranking import delong_interval

HERE = Path(__file__).resolve().parent
NONE = 2  # the index of "notumor"
PRETRAINED, FULL = 'factory = "mri:pretrained"', 'strategy = "full"'
VARIANTS = {
    "full": (),
    "gradual": ((FULL, 'strategy = "gradual"'),),
    "head": ((FULL, 'strategy = "head"'),),
    "from scratch": ((PRETRAINED, 'factory = "mri:untrained"'),),
}


def main(*changes):
    """Trains the four variants, each with these changes ``(old, new)`` of ``edgekit.toml`` too, and prints two tables."""
    sys.path.insert(0, str(HERE))
    import mri

    # The projects that are trained are copies elsewhere.
    os.environ |= {"BRAIN_MRI": str(mri.folder()), "MOBILENET": str(mri.backbone())}
    held = mri.load()["eval"]
    with tempfile.TemporaryDirectory() as work:
        scores = {}
        for name, own in VARIANTS.items():
            trained = toolkit.finetune(project(Path(work) / name, *own, *changes))
            scores[name] = answer(mri.untrained(), trained.weights, held["image"])
            print(f"{name}: epoch {trained.facts['best_epoch']} of {trained.facts['epochs']}, {trained.facts['seconds']:.0f} s", file=sys.stderr)
    print("| training | accuracy | sensitivity | specificity | ROC-AUC |\n|---|---|---|---|---|")
    for name, found in scores.items():
        print(f"| {name} | {' | '.join(figures(found, held['label']))} |")
    print("\n| change to *full* | accuracy | lost | gained | McNemar p |\n|---|---|---|---|---|")
    for name in list(scores)[1:]:
        print(f"| from *{name}* | {' | '.join(change(scores['full'], scores[name], held['label']))} |")


def project(folder, *changes):
    """Copies this project with changes ``(old, new)`` of the text of its ``edgekit.toml``."""
    folder.mkdir()
    shutil.copy(HERE / "mri.py", folder)
    text = (HERE / "edgekit.toml").read_text(encoding="utf-8")
    for old, new in changes:
        if old not in text:
            raise SystemExit(f"edgekit.toml has no {old!r} any more")
        text = text.replace(old, new)
    (folder / "edgekit.toml").write_text(text, encoding="utf-8")
    return folder


def answer(model, weights, images):
    """Returns the probabilities of all classes ``[n x 4]``."""
    import torch
    from safetensors.torch import load_file

    model.load_state_dict(load_file(weights))
    with torch.no_grad():
        return torch.cat([model.eval()(part).softmax(dim=1) for part in torch.from_numpy(images).split(100)]).numpy()


def figures(scores, label):
    """Returns accuracy over the four classes; then, of tumour against none, sensitivity, specificity and area under the ROC curve."""
    right, ill, called = scores.argmax(axis=1) == label, label != NONE, scores.argmax(axis=1) != NONE
    shares = [share(right), share(called[ill]), share(~called[~ill])]
    value, low, high = delong_interval(1 - scores[:, NONE], ill)
    return [*shares, f"{value:.4f} [{low:.4f}, {high:.4f}] n={len(label)}"]


def share(yes):
    """Returns a share with its Wilson interval."""
    low, high = proportion_interval(int(yes.sum()), len(yes))
    return f"{yes.mean():.1%} [{low:.1%}, {high:.1%}] n={len(yes)}"


def change(now, before, label):
    """Returns the paired change of accuracy with Newcombe's interval, what was lost and gained, and McNemar's exact p."""
    after, earlier = (scores.argmax(axis=1) == label for scores in (now, before))
    lost, gained = int((earlier & ~after).sum()), int((after & ~earlier).sum())
    value, low, high = paired_difference_interval(int((after & earlier).sum()), lost, gained, int((~after & ~earlier).sum()))
    points = f"{100 * value:+.1f} pp [{100 * low:+.1f}, {100 * high:+.1f}] n={len(label)}"
    return [points, str(lost), str(gained), f"{mcnemar_p(lost, gained):.2g}"]


if __name__ == "__main__":
    try:
        main()
    except toolkit.ToolkitError as error:
        raise SystemExit(f"error: {error}\n  -> {error.hint}") from None
