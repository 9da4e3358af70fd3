"""The digits job by hand: the same library calls that Edgekit makes, as one script without Edgekit.

It imports the example's own ``digits.py`` for data and network, trains, converts, quantizes and counts right answers, all in
one process. What Edgekit adds on top (parity, audits, latency, intervals, caching, isolation) is left out.
Called as ``raw_digits.py OUT``; writes the models and ``raw.json`` there.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from pathlib import Path

import numpy as np

EPOCHS, BATCH, PEAK, DECAY, SMOOTHING, WARMUP, CLIP = 20, 32, 3e-3, 0.02, 0.05, 0.1, 1.0
CALIBRATION_SAMPLES = 200
SEED = 0
THREADS = (1, 2)  # of the example's targets: the desktop's and the phone's


def main(out: Path) -> None:
    """Runs the job and writes how long each part took."""
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        now = time.perf_counter()
        seconds[name], started = round(now - started, 3), now

    from digits import build, load

    lap("import torch")
    data = load()
    train, held_out = data["train"], data["eval"]
    lap("data")
    random.seed(SEED)
    np.random.seed(SEED)
    model, steps = fit(build, train["image"], train["label"])
    lap("finetune")
    program = export(model, out)
    lap("torch.export")
    to_onnx(program, out / "float.onnx")
    lap("onnx")
    to_tflite(model, out / "float.tflite")
    lap("tflite")
    samples = train["image"][stratified(train["label"], CALIBRATION_SAMPLES)]
    quantize_onnx(out / "float.onnx", out / "int8.onnx", samples)
    lap("quantize onnx")
    quantize_tflite(out / "float.tflite", out / "int8.tflite", samples)
    lap("quantize tflite")
    accuracy = {}
    for threads in THREADS:
        for kind in ("float", "int8"):
            for format, scores in (("onnx", scores_onnx), ("tflite", scores_tflite)):
                picked = scores(out / f"{kind}.{format}", held_out["image"], threads).argmax(axis=1)
                accuracy[f"{kind}.{format}@{threads}"] = float((picked == held_out["label"]).mean())
    lap("evaluate")
    (out / "raw.json").write_text(json.dumps({"steps": steps, "accuracy": accuracy, "seconds": seconds}, indent=1), encoding="utf-8")


def fit(build, images, labels):
    """Trains, keeps the epoch that does best on a held-out tenth, and returns the model and how many steps it took."""
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # as in the example's edgekit.toml
    model = build()
    rows, held = hold_out(labels)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    wide = [p for p in model.parameters() if p.ndim > 1]
    narrow = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": wide, "weight_decay": DECAY}, {"params": narrow, "weight_decay": 0.0}], lr=PEAK)
    generator = np.random.default_rng(SEED)
    done, total = 0, EPOCHS * math.ceil(len(rows) / BATCH)
    best, weights = None, {}
    for _ in range(EPOCHS):
        model.train()
        order = torch.from_numpy(generator.permutation(rows))
        for batch in order.split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = PEAK * schedule(done, total)
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch], label_smoothing=SMOOTHING)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            done += 1
        model.eval()
        with torch.no_grad():
            logits = model(x[held])
            right = int((logits.argmax(dim=1) == y[held]).sum())
            rank = (right, -float(torch.nn.functional.cross_entropy(logits, y[held])))
        if best is None or rank > best:
            best, weights = rank, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.eval(), done


def schedule(step, steps):
    """Linear warm-up, then half a cosine."""
    rising = round(WARMUP * steps)
    return (step + 1) / rising if step < rising else 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def hold_out(labels):
    """Every tenth row, class by class, after shuffling; the first of each class is trained on."""
    generator = np.random.default_rng(SEED)
    shuffled = [generator.permutation(np.flatnonzero(labels == one)) for one in np.unique(labels)]
    held = np.sort(np.concatenate([rows[1:] for rows in shuffled])[5::10])
    return np.setdiff1d(np.arange(len(labels)), held), held


def stratified(labels, count):
    """``count`` rows with every class in its share, by largest remainders."""
    generator = np.random.default_rng(SEED)
    classes, sizes = np.unique(labels, return_counts=True)
    shares = count * sizes
    seats = shares // len(labels)
    seats[np.argsort(-(shares % len(labels)), kind="stable")[: count - seats.sum()]] += 1
    picked = [generator.permutation(np.flatnonzero(labels == one))[:taken] for one, taken in zip(classes, seats, strict=True)]
    return np.sort(np.concatenate(picked))


def export(model, out):
    import torch

    program = torch.export.export(model, (torch.zeros(1, 1, 8, 8),))
    torch.export.save(program, out / "model.pt2")
    return program


def to_onnx(program, file):
    import torch

    torch.onnx.export(program, input_names=["image"], output_names=["logits"], dynamo=True, verbose=False).save(str(file))


def to_tflite(model, file):
    import litert_torch
    import torch

    litert_torch.convert(model, (torch.zeros(1, 1, 8, 8),)).export(str(file))


def quantize_onnx(file, out, samples):
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        rows = ({"image": samples[row : row + 1]} for row in range(len(samples)))

        def get_next(self):
            return next(self.rows, None)

    prepared = out.with_name("prepared.onnx")
    model = onnx.load(file)
    model.graph.ClearField("value_info")  # the exporter's shapes contradict the optimized graph
    onnx.save_model(model, prepared)
    quant_pre_process(str(prepared), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
    )


def quantize_tflite(file, out, samples):
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import calibrator, qtyping, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.utils import qsv_utils

    quantizer = Quantizer(str(file))
    quantizer.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for border in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        quantizer.update_quantization_recipe(".*", border, algorithm_key=AlgorithmName.NO_QUANTIZE)
    ((key, names),) = Interpreter(str(file)).get_signature_list().items()
    rows = [{names["inputs"][0]: samples[row : row + 1]} for row in range(len(samples))]
    mode = calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED
    observer = calibrator.Calibrator(str(file), num_threads=1, mode=mode, qsv_update_func=qsv_utils.min_max_update)
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(quantizer.get_quantization_recipe())
    observer.calibrate({key: rows}, manager)
    result = quantizer.quantize(observer.get_model_qsvs(), enable_progress_report=False)
    out.write_bytes(bytes(result.quantized_model))


def scores_onnx(file, images, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: images[row : row + 1]})[0] for row in range(len(images))])


def scores_tflite(file, images, threads):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file), num_threads=threads)
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    scores = []
    for row in range(len(images)):
        interpreter.set_tensor(source, images[row : row + 1])
        interpreter.invoke()
        scores.append(interpreter.get_tensor(result))
    return np.concatenate(scores)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "digits"))
    main(Path(sys.argv[1]))
