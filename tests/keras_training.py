"""Small Keras models fine-tuned in a process of their own: ``python -m tests.keras_training <folder>``, which writes what each run gave."""

import contextlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from tests.keras_training_models import blobs, numpy_forward
from toolkit import keras_models, keras_weights, plugins
from toolkit.dataset import Dataset, hold_out
from toolkit.errors import ToolkitError
from toolkit.finetuning import keras_checkpoint, keras_loop, keras_parts, keras_stage, recipe
from toolkit.job import Job
from toolkit.training import Finetune

SMALL = {"epochs": 6, "batch_size": 16, "learning_rate": 0.02, "device": "cpu", "seed": 5, "threads": 1}
_RUNS = itertools.count()


def train(folder, build="net", data=None, weights=None, kept=None, progress=lambda *_: None, **options):
    out = folder / f"run{next(_RUNS)}"
    out.mkdir()
    (data or blobs()).write(out.with_suffix(".data"))
    inputs = {"project": Path(__file__).parent, "data": out.with_suffix(".data")} | ({"weights": weights} if weights else {})
    job = Job(inputs, {**SMALL, "factory": f"keras_training_models:{build}", **options}, out, progress, kept)
    return keras_stage.run(job), out


def arrays(out):
    from safetensors.numpy import load_file

    return load_file(out / "weights.safetensors")


def learns(folder):
    """The recorded accuracy is that of the written weights, computed in NumPy."""
    told = []
    facts, out = train(folder, progress=lambda *one: told.append(one))
    _, other = train(folder)
    _, held = hold_out(blobs().label, 5)
    scores = numpy_forward(arrays(out), blobs().columns["x"][held])
    training = json.loads((out / "training.json").read_text())
    return {
        "facts": facts,
        "training": training,
        "accuracy": float(np.mean(scores.argmax(axis=1) == blobs().label[held])),
        "same": [(out / name).read_bytes() == (other / name).read_bytes() for name in ("weights.safetensors", "training.json")],
        "names": sorted(arrays(out)),
        "told": told[-1],
    }


def plain_loop(folder):
    """The curve of a loop of Keras' own ``train_on_batch``, whose loss is the mean cross-entropy and whose rate is set before each step."""
    import keras

    settings = Finetune(**{name: value for name, value in SMALL.items() if name != "seed"}, label_smoothing=0.1)
    facts, out = train(folder, "plain", label_smoothing=0.1)
    keras.utils.set_random_seed(5)
    from tests.keras_training_models import plain

    model, data = plain(), blobs()
    optimizer = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay, epsilon=1e-8, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1))
    rows, _ = hold_out(data.label, 5)
    generator, done, curve = np.random.default_rng(5), 0, []
    steps = settings.epochs * len(recipe.batches(rows, 16))
    for _ in range(settings.epochs):
        summed = 0.0
        for batch in recipe.batches(generator.permutation(rows), 16):
            optimizer.learning_rate.assign(settings.learning_rate * recipe.schedule(done, steps, settings.warmup))
            model.reset_metrics()
            summed += float(model.train_on_batch(data.columns["x"][batch], np.eye(3, dtype=np.float32)[data.label[batch]])) * len(batch)
            done += 1
        curve.append(summed / len(rows))
    found = [one["train_loss"] for one in json.loads((out / "training.json").read_text())["epochs"]]
    return {"expected": curve, "found": found, "outputs": facts["outputs"]}


def probabilities(folder):
    """A model that ends in a softmax is trained as the same one without: same weights, and the fact says which it is."""
    logits, one = train(folder, "plain")
    found = {}
    for build in ("soft_activation", "soft_layer", "soft_nested"):
        facts, other = train(folder, build)
        names = zip(sorted(arrays(one)), sorted(arrays(other)), strict=True)
        found[build] = {"outputs": facts["outputs"], "apart": max(float(np.abs(arrays(one)[a] - arrays(other)[b]).max()) for a, b in names)}
    return {"logits": logits["outputs"], **found}


class Torn(Exception):
    pass


def resumed(folder):
    """Interrupted after every so many steps; the model has dropout and batch norm, and its weights are averaged."""
    keras_checkpoint.KerasCheckpoint.every_seconds = -1.0
    found = {}
    for strategy in ("full", "gradual"):
        options = {"average": 0.9, "strategy": strategy, "balance": "sampler", "build": "dropping"}
        _, whole = train(folder, **options)
        kept = folder / f"kept_{strategy}"
        kept.mkdir()
        for stop in (1, 17, 40):
            keras_loop._REPORT_SECONDS, limit = -1.0, itertools.count()

            def tear(*_, limit=limit, stop=stop):
                if next(limit) >= stop:
                    raise Torn

            with contextlib.suppress(Torn):
                train(folder, kept=kept, progress=tear, **options)
        _, out = train(folder, kept=kept, **options)
        found[strategy] = [(whole / name).read_bytes() == (out / name).read_bytes() for name in ("weights.safetensors", "training.json")]
    return found


def strategies(folder):
    """Which weights a run changes, by strategy; beginning from the same numbers."""
    import keras

    from tests import keras_training_models as models

    found = {}
    for title, options in {
        "head": {"strategy": "head"},
        "last": {"strategy": "last", "blocks": 2},
        "gradual": {"strategy": "gradual"},
        "freeze": {"freeze": ("*/hidden/*", "*/bn*")},
        "frozen base": {"build": "on_frozen_base"},
    }.items():
        facts, out = train(folder, **({"build": "deep", "epochs": 4} | options))
        keras.utils.set_random_seed(5)
        begun = {name: np.asarray(one) for name, one in keras_weights.by_name(getattr(models, options.get("build", "deep"))()).items()}
        changed = sorted(name for name, array in arrays(out).items() if not np.array_equal(array, begun[name]))
        curve = json.loads((out / "training.json").read_text())["epochs"]
        found[title] = {"changed": changed, "trained": [one["trained"] for one in curve], "trainable": facts["trainable"]}
    return found


def steps(folder):
    """One step of the trainer, by NumPy: weighted loss, clipped gradient, decoupled decay; and the same step in three parts."""
    import keras

    from tests.keras_training_models import linear

    keras.utils.set_random_seed(1)
    data, found = blobs(24, classes=3), {}
    uneven = Dataset({"x": 9 * data.columns["x"]}, np.where(np.arange(24) < 4, 1, np.where(np.arange(24) < 6, 2, 0)))
    asked = {"epochs": 1, "batch_size": 24, "learning_rate": 0.05, "weight_decay": 0.3, "warmup": 0.0, "balance": "weights", "average": 0.5}
    for parts in (1, 3):
        model = linear()
        model.set_weights([np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), np.array([0.1, 0.2, -0.3], np.float32)])
        settings = Finetune(**asked, accumulate=parts)
        caller = keras_parts.KerasCaller(model, ["x"])
        keras_parts.check_scores(caller, uneven, 3, 3)
        trainer = keras_loop.KerasTrainer(caller, settings, 3)
        trainer.run(uneven, np.arange(24), np.arange(24), 0)
        found[str(parts)] = [one.tolist() for one in model.get_weights()]
    weights = recipe.class_weights(uneven.label)
    return {**found, "x": uneven.columns["x"].tolist(), "label": uneven.label.tolist(), "weights": weights.tolist()}


def starts(folder):
    """Training that begins from weights, also with a head for another number of classes; names do not depend on what was built before."""
    from tests import keras_training_models as models

    _, out = train(folder)
    facts, other = train(folder, "four", data=blobs(classes=4), weights=out / "weights.safetensors", epochs=1, learning_rate=1e-9)
    kept = all(np.allclose(arrays(out)[name], array, atol=1e-6) for name, array in arrays(other).items() if "kernel" in name and "head" not in name)
    source, x = plugins.get("sources", "keras"), blobs().columns["x"][:5]
    own = models.own_class()
    source.build(own, {"x": x})
    keras_weights.save(own, folder / "own.safetensors")
    fresh = models.own_class()
    source.build(fresh, {"x": x})
    source.prepare(fresh, folder / "own.safetensors")
    same = np.array_equal(np.asarray(own(x)), np.asarray(fresh(x)))
    return {"replaced": facts["replaced"], "kept": kept, "same": same, "names": sorted(arrays(out)) == sorted(keras_weights.by_name(models.net()))}


def refusals(folder):
    """Each mistake, and what is said of it."""
    (folder / "broken.safetensors").write_bytes(b"no")
    _, out = train(folder, epochs=1)
    asked = {
        "pattern": {"freeze": ("hiden/*",)},
        "all frozen": {"freeze": ("*",)},
        "head frozen": {"strategy": "head", "freeze": ("head/*",)},
        "classes": {"classes": ["a", "b"]},
        "labels": {"data": blobs(classes=4)},
        "shape": {"build": "narrow"},
        "no model": {"build": "no_model"},
        "broken": {"weights": folder / "broken.safetensors"},
        "other": {"weights": out / "weights.safetensors", "build": "deep"},
        "diverged": {"learning_rate": 1e30, "build": "plain"},
        "lora": {"strategy": "lora"},
    }
    found = {}
    for title, options in asked.items():
        try:
            train(folder, **options)
            found[title] = ["nothing", "", ""]
        except ToolkitError as error:
            found[title] = [type(error).__name__, str(error), error.hint]
    return found


CASES = (learns, plain_loop, probabilities, strategies, steps, starts, refusals, resumed)

if __name__ == "__main__":
    root = Path(sys.argv[1])
    sys.path.insert(0, str(Path(__file__).parent))
    keras_models.use("tensorflow")
    for case in CASES:
        if len(sys.argv) > 2 and case.__name__ not in sys.argv[2:]:
            continue
        (root / f"{case.__name__}.json").write_text(json.dumps(case(root)))
