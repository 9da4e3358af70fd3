"""What the pretrained encoder is worth: ``python examples/sentiment/compare.py``.

The same network is trained on the same sentences for as many epochs twice: from MiniLM's weights, and from scratch.
"""

import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

import toolkit
from toolkit.stats.proportions import mcnemar_p, paired_difference_interval, proportion_interval

HERE = Path(__file__).resolve().parent
# A network without any knowledge needs a larger step than one that must not forget.
SCRATCH = (('factory = "sentiment:pretrained"', 'factory = "sentiment:untrained"'), ("learning_rate = 1e-4", "learning_rate = 3e-4"))


def main(*changes):
    """Trains both, each with these changes ``(old, new)`` of ``edgekit.toml`` too, and prints two tables."""
    sys.path.insert(0, str(HERE))
    import sentiment

    # The projects that are trained are copies elsewhere.
    os.environ["SST2"] = str(sentiment.data().resolve())
    splits, words = sentiment.load(), sentiment.sentences()
    held, label = splits["eval"], splits["eval"]["label"]
    with tempfile.TemporaryDirectory() as work:
        right = {}
        for name, own in (("pretrained", ()), ("from scratch", SCRATCH)):
            trained = toolkit.finetune(project(Path(work) / name.replace(" ", "-"), *own, *changes))
            right[name] = answer(sentiment.untrained(), trained.weights, held) == label
            print(f"{name}: epoch {trained.facts['best_epoch']} of {trained.facts['epochs']}, {trained.facts['seconds']:.0f} s", file=sys.stderr)
    for name, train in (("naive Bayes", words["train"]), ("naive Bayes, all sentences", sentiment.read("train.tsv"))):
        right[name] = naive_bayes(train, words["eval"][0]) == label
    print("| model | accuracy |\n|---|---|")
    for name, found in right.items():
        print(f"| {name} | {share(found)} |")
    print("\n| change to *pretrained* | accuracy | lost | gained | McNemar p |\n|---|---|---|---|---|")
    for name in list(right)[1:]:
        print(f"| from *{name}* | {' | '.join(change(right['pretrained'], right[name]))} |")


def project(folder, *changes):
    """Copies this project with changes ``(old, new)`` of the text of its ``edgekit.toml``."""
    folder.mkdir()
    shutil.copy(HERE / "sentiment.py", folder)
    text = (HERE / "edgekit.toml").read_text(encoding="utf-8")
    for old, new in changes:
        if old not in text:
            raise SystemExit(f"edgekit.toml has no {old!r} any more")
        text = text.replace(old, new)
    (folder / "edgekit.toml").write_text(text, encoding="utf-8")
    return folder


def answer(model, weights, columns):
    """Returns the class that the network picks for each sentence."""
    import torch
    from safetensors.torch import load_file

    model.load_state_dict(load_file(weights))
    ids, masks = (torch.from_numpy(columns[name]).split(100) for name in ("input_ids", "attention_mask"))
    with torch.no_grad():
        return torch.cat([model.eval()(*pair).argmax(dim=1) for pair in zip(ids, masks, strict=True)]).numpy()


def naive_bayes(train, texts):
    """Returns the class that naive Bayes on single words picks for each text; words are counted with one more of each."""
    counts = [Counter(word for text in train[0][train[1] == one] for word in text.split()) for one in (0, 1)]
    known = set(counts[0]) | set(counts[1])
    totals = [one.total() + len(known) for one in counts]
    prior = math.log(np.mean(train[1] == 1) / np.mean(train[1] == 0))
    worth = {word: math.log((counts[1][word] + 1) / totals[1]) - math.log((counts[0][word] + 1) / totals[0]) for word in known}
    return np.array([prior + sum(worth.get(word, 0.0) for word in text.split()) > 0 for text in texts]).astype(int)


def share(right):
    """Returns a share with its Wilson interval."""
    low, high = proportion_interval(int(right.sum()), len(right))
    return f"{right.mean():.1%} [{low:.1%}, {high:.1%}] n={len(right)}"


def change(now, before):
    """Returns the paired change of accuracy with Newcombe's interval, what was lost and gained, and McNemar's exact p."""
    lost, gained = int((before & ~now).sum()), int((now & ~before).sum())
    value, low, high = paired_difference_interval(int((now & before).sum()), lost, gained, int((~now & ~before).sum()))
    return [f"{100 * value:+.1f} pp [{100 * low:+.1f}, {100 * high:+.1f}] n={len(now)}", str(lost), str(gained), f"{mcnemar_p(lost, gained):.2g}"]


if __name__ == "__main__":
    try:
        main()
    except toolkit.ToolkitError as error:
        raise SystemExit(f"error: {error}\n  -> {error.hint}") from None
