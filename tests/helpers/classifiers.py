"""Tiny classifiers in the project's format, of images by their mean color and of texts by their n-grams. No torch."""
import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from inference.model import METADATA_KEY
from inference.ngrams import Ngrams

SIDE = 32
NGRAMS = {"low": 1, "high": 3, "buckets": 512}
COLORS = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}  # BGR
WORDS = {"red": "ROUGE", "green": "VERT", "blue": "BLEU"}


def image_about(**changes) -> dict:
    return {"format": 1, "task": "classification", "image_size": SIDE, "fit": "squash", "classes": list(COLORS), **changes}


def text_about(**changes) -> dict:
    return {"format": 1, "task": "text_classification", "classes": list(WORDS), "ngrams": NGRAMS, **changes}


def write_image_classifier(path, about=None, outputs=("logits", "probabilities"), gain=8.0, shape=("batch", 3, SIDE, SIDE)):
    """logits: gain times how much of each class's color is in the image. Returns `path`."""
    about = image_about() if about is None else about
    classes = _known(about, COLORS)
    weights = gain * np.float32([[COLORS[name][2 - channel] / 255 for name in classes] for channel in range(3)])
    nodes = [helper.make_node("GlobalAveragePool", ["img"], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["mean"]),
             helper.make_node("MatMul", ["mean", "weights"], ["sums"])]
    return _write(path, about, nodes, {"weights": weights}, {"img": (TensorProto.FLOAT, list(shape))}, outputs)


def write_text_classifier(path, about=None, outputs=("logits", "probabilities"), gain=40.0):
    """logits: gain times the share of a text's n-grams that are in each class's word. Returns `path`."""
    about = text_about() if about is None else about
    ngrams = Ngrams(**NGRAMS)
    table = np.zeros((ngrams.buckets, len(WORDS)), np.float32)
    for c, name in enumerate(_known(about, WORDS)):
        table[ngrams.rows(WORDS[name]), c] = gain
    nodes = [helper.make_node("Gather", ["table", "rows"], ["gathered"]),
             helper.make_node("Unsqueeze", ["weights", "last"], ["shares"]),
             helper.make_node("Mul", ["gathered", "shares"], ["parts"]),
             helper.make_node("ReduceSum", ["parts", "first"], ["sums"], keepdims=0)]
    return _write(path, about, nodes, {"table": table, "last": np.int64([2]), "first": np.int64([1])},
                  {"rows": (TensorProto.INT64, ["batch", "length"]), "weights": (TensorProto.FLOAT, ["batch", "length"])},
                  outputs)


def tokenizer() -> str:
    """JSON of a tokenizer of Hugging Face that splits at white space: the words of WORDS in lower case, and [UNK]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    vocabulary = {"[UNK]": 0, **{word.lower(): number for number, word in enumerate(WORDS.values(), 1)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    return made.to_str()


def write_token_classifier(path, about, more_inputs=()):
    """logits: how often each class's word comes among the tokens. Returns `path`."""
    table = np.concatenate([np.zeros((1, len(WORDS)), np.float32), np.eye(len(WORDS), dtype=np.float32)])
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["gathered"]),
             helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
             helper.make_node("Unsqueeze", ["mask", "last"], ["shares"]),
             helper.make_node("Mul", ["gathered", "shares"], ["parts"]),
             helper.make_node("ReduceSum", ["parts", "first"], ["sums"], keepdims=0)]
    inputs = {name: (TensorProto.INT64, ["batch", "length"]) for name in ("input_ids", "attention_mask", *more_inputs)}
    return _write(path, about, nodes, {"table": table, "last": np.int64([2]), "first": np.int64([1])}, inputs,
                  ("logits", "probabilities"))


def write_folder(folder, weights=(0.5, 0.7), image=None, text=None, **changes):
    """A folder of an image and a text classifier and the fusion of both. Returns `folder`."""
    folder.mkdir()
    write_image_classifier(folder / "image.onnx", image)
    write_text_classifier(folder / "text.onnx", text)
    fusion = {"form": "product", "classes": list(COLORS), "fallback": {"image": {"by_color": 1.0}, "text": {"by_word": 1.0}},
              "models": [{"name": "by_color", "kind": "image", "weight": weights[0], "temperature": 1.0},
                         {"name": "by_word", "kind": "text", "weight": weights[1], "temperature": 1.0}], **changes}
    (folder / "fusion.json").write_text(json.dumps(fusion))
    return folder


def _known(about, names):
    """`names` in the order of the metadata's classes, where those are the same."""
    classes = about.get("classes") if isinstance(about, dict) else None
    return classes if isinstance(classes, list) and set(map(str, classes)) == set(names) else list(names)


def _write(path, about, nodes, constants, inputs, outputs):
    nodes += [helper.make_node("Identity", ["sums"], ["logits"]), helper.make_node("Softmax", ["sums"], ["probabilities"])]
    graph = helper.make_graph(
        nodes, "classifier", [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if about is not None:
        model.metadata_props.add(key=METADATA_KEY, value=about if isinstance(about, str) else json.dumps(about))
    path.write_bytes(model.SerializeToString())
    return path
