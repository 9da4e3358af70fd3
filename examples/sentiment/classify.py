"""What an app does with the bundle: ``python examples/sentiment/classify.py "a stirring , funny film"``.

It needs the folder of ``bundle.py``, ONNX Runtime and tokenizers; neither Edgekit nor PyTorch.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

MODELS = Path(__file__).resolve().parent / "edgekit-out" / "models"


def main(texts, models=MODELS):
    """Prints how likely each text is positive, in percent."""
    tokenizer = Tokenizer.from_file(str(models / "tokenizer.json"))  # it cuts and fills to 40 tokens by itself
    session = onnxruntime.InferenceSession(models / "sentiment.dynamic_wi8.onnx")
    for text in texts:
        tokens = tokenizer.encode(text)
        (logits,) = session.run(["logits"], {"input_ids": np.array([tokens.ids]), "attention_mask": np.array([tokens.attention_mask])})
        print(f"{1 / (1 + np.exp(logits[0, 0] - logits[0, 1])):.1%} {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
