"""Classification by text, over n-grams and with an encoder of Hugging Face (a tiny BERT of random weights, made here): it
learns, trains alike on 1, 2 and 3 ranks, resumes to the bit, says nothing of samples without text, and its export computes
the same without torch. Nothing of an untrusted encoder is executed."""
import json
import math
import pickle
import shutil
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

import onnx_export
from adverts.split import Row, Split, read_split, write_split
from backbones import text as encoders
from backbones.text import NgramNetwork, hf_encoder, restored_encoder
from configs import load_config, load_run, read_info
from engine.distributed import Ranks
from engine.predictions import read_predictions, write_predictions
from engine.random import normal
from inference.classifier import load_network
from inference.errors import UserError
from inference.ngrams import Ngrams, document
from tasks import build_task
from tasks.text_classification import TextClassificationTask, augmented
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CPU, average_is_published, check_same_training, losses_of, rows, stop_and_resume
from tools import predict
from train_v2 import train

WORDS = {"car": "motor wheel Diesel speed road", "food": "taste fresh menu cheese bread", "游戏": "新品 限时 游戏 level"}
CLASSES = sorted(WORDS)
COMMON = "now sale 50% the best"
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def advert(name, seed):
    """Three to five lines of one or two words, most of them common to all classes."""
    generator = np.random.default_rng([CLASSES.index(name), seed])
    own, common = WORDS[name].split(), COMMON.split()
    lines = [" ".join(generator.choice(common, 2)) for _ in range(generator.integers(2, 4))]
    return [*lines, *generator.choice(own, generator.integers(1, 3))]


def write_tokenizer(folder):
    """Words as they are, with BERT's marks around them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *" ".join([*WORDS.values(), COMMON]).split()]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.save(str(folder / "tokenizer.json"))
    return len(words)


def write_bert(folder, **changes):
    """An encoder's folder, as transformers writes it; weights of seed 0. Returns `folder`."""
    folder.mkdir()
    config = {**BERT, "vocab_size": write_tokenizer(folder), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(hf_encoder(str(folder), False, "cls", 8).model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """54 labeled adverts in three folds, four of them without text, 9 unlabeled ones and 9 of the test; their texts; a
    teacher who knows all but two; an encoder."""
    root, split, texts = tmp_path_factory.mktemp("texts"), [], {}
    for name in CLASSES:
        for i in range(24):
            role = "train" if i < 18 else "unlabeled" if i < 21 else "test"
            file = f"{role}/{name}_{i:02}.png"
            texts[file] = [] if name == "car" and i in (0, 4, 8, 9) else advert(name, i)
            split.append(Row(file, "" if role == "unlabeled" else name, file, role, i % 3 if role == "train" else -1))
    write_split(root / "split.csv", Split(split))
    write_texts(root / "texts.jsonl", texts)
    known = [row for row in split if row.file not in ("train/food_03.png", "unlabeled/food_19.png")]
    values = 2 * normal(1, "teacher", torch.arange(len(known))[:, None], torch.arange(3))
    names = [row.file for row in known]
    write_predictions(root / "logits", dict(zip(names, values)), "logits", CLASSES[::-1],
                      {row.file: row.fold for row in known})
    write_predictions(root / "embeddings", dict(zip(names, values[:, :2])), "embedding")
    write_bert(root / "bert")
    return root


def write_texts(path, texts):
    box = [[0, 0], [9, 0], [9, 9], [0, 9]]
    found = [{"id": name, "segments": [{"text": line, "score": 0.9, "box": box} for line in lines]}
             for name, lines in texts.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


def read_texts(data):
    return {row["id"]: [segment["text"] for segment in row["segments"]]
            for row in map(json.loads, (data / "texts.jsonl").read_text().splitlines())}


def settings(data, output, *more):
    return load_config("ads_text_small", [
        f"split={data / 'split.csv'}", f"texts={data / 'texts.jsonl'}", "fold=1", f"output={output}", "batch_size=9",
        "dropout=0", "max_steps=6", "log_every=1", "device=cpu", "ngram_buckets=512", "embedding_size=8", *more])


def bert(data):
    return f"text_network={data / 'bert'}", "pooling=mean", "max_tokens=12", "lr=1e-2"


NETWORKS = {"ngrams": lambda data: (), "bert": bert}


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, data, tmp_path_factory):
    """(the data, a run for each fold) of either network."""
    output = tmp_path_factory.mktemp(request.param)
    for fold in range(3):
        train(settings(data, output / str(fold), f"fold={fold}", "max_steps=40", "batch_size=16", "log_every=10",
                       *NETWORKS[request.param](data)), Ranks(0, 1, CPU))
    return data, output


def test_it_learns(trained):
    """The held-out fold: chance is 1/3."""
    _, output = trained
    found = json.loads((output / "0/eval.json").read_text())
    assert found["accuracy"] >= 0.9 and found["images"] == 16 and found["without_text"] == 2
    log = (output / "0/training.log").read_text()
    assert "2 of 36 samples have no text, and are not learned from" in log and "eval 40/40 accuracy" in log


# ---------------------------------------------------------------- what is computed
def test_the_network_of_ngrams_is_tf_idf_times_a_table(data, tmp_path):
    """Each text by loops, in float64: roots of counts, scikit-learn's smooth idf over the texts learned from, length 1."""
    task = build_task(settings(data, tmp_path), Ranks(0, 1, CPU))
    network, texts = task.published.double(), read_texts(data)
    with torch.no_grad():
        network.encoder.table += normal(0, "table", torch.arange(512)[:, None], torch.arange(8))

    def counted(name):
        found = Counter()
        for word in document(texts[name]).lower().split():
            word = f" {word} "
            found.update(zlib.crc32(word[i:i + n].encode()) % 512 for n in range(1, 6) for i in range(len(word) - n + 1))
        return found
    having = Counter(bucket for name in task.ids for bucket in counted(name))
    names = ["train/food_01.png", "test/游戏_22.png", "train/car_00.png"]
    logits = network(*network.encoder.inputs([[network.encoder.prepare(line) for line in texts[name]] for name in names]))
    for name, row in zip(names, logits):
        weight = {bucket: math.sqrt(count) * (math.log((1 + len(task.ids)) / (1 + having[bucket])) + 1)
                  for bucket, count in counted(name).items()}
        length = math.sqrt(sum(value ** 2 for value in weight.values()))
        embedding = sum((value / length * network.encoder.table[bucket] for bucket, value in weight.items()), torch.zeros(8))
        expected = network.classify[1].weight @ embedding.double() + network.classify[1].bias
        assert torch.allclose(row, expected, rtol=0, atol=1e-5), name        # weights come as float32
    assert torch.equal(logits[2], network.classify[1].bias)                    # of no text


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_changes_nothing_and_the_pooling_is_of_hidden_states(data, pooling):
    torch.set_default_dtype(torch.float64)
    try:
        encoder = hf_encoder(str(data / "bert"), True, pooling, 12).eval()
        texts = [["motor now", "taste"], ["best"], [], ["the"] * 40]
        ids, mask = encoder.inputs(texts)
        assert ids.shape == (4, 12) and mask.sum(1).tolist() == [5, 3, 2, 12]
        together = encoder(ids, mask)
        for row, lines in zip(together, texts):
            ids, mask = encoder.inputs([lines])
            hidden = encoder.model(ids).last_hidden_state[0]
            assert mask.all() and torch.allclose(row, hidden[0] if pooling == "cls" else hidden.mean(0), rtol=0, atol=1e-12)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_terms_are_those_of_plain_formulas(data, tmp_path, kind):
    """Of the network's own logits: a library that is given labels may choose another loss, for soft ones without a word."""
    cfg = settings(data, tmp_path, f"teacher={data / 'logits'}", "unlabeled=test", "temperature=1.5", *NETWORKS[kind](data))
    task = build_task(cfg, Ranks(0, 1, CPU))
    task.forward = task.model
    told = read_predictions(data / "logits")
    said = {name: values[[2, 1, 0]].double() for name, values in zip(told.ids, told.values)}
    seen = set()
    for batch, _ in zip(task.batches(0), range(6)):
        entropies, distances = [], []
        for name, label, logits in zip(batch["id"], batch["label"], task.published(*batch["inputs"]).detach().double()):
            log_p = logits.log_softmax(0)
            if name.startswith("train"):
                assert name.split("/")[1].split("_")[0] == CLASSES[label]
                entropies.append(-sum((0.1 / 3 + 0.9 * (c == label)) * log_p[c] for c in range(3)))
            else:
                assert label == -1
            if name in said:
                p = (said[name] / 1.5).softmax(0)
                distances.append(1.5 ** 2 * (p * (p.log() - (logits / 1.5).log_softmax(0))).sum())
            seen.add((name.split("/")[0], name in said))
        terms = task.losses(batch)
        assert terms["cross_entropy"].item() == pytest.approx(sum(entropies).item() / len(entropies), rel=1e-5)
        assert terms["teacher"].item() == pytest.approx(sum(distances).item() / len(distances), rel=1e-5)
    assert seen == {("train", True), ("train", False), ("unlabeled", True), ("test", True)}


# ---------------------------------------------------------------- batches
def test_a_text_is_seen_anew_each_time_as_a_function_of_seed_and_position():
    lines = list("abcdefghij")
    seen = [augmented(lines, 0.1, 0, position) for position in range(2000)]
    assert seen == [augmented(lines, 0.1, 0, position) for position in range(2000)] and len(set(map(tuple, seen))) > 1990
    assert seen[:50] != [augmented(lines, 0.1, 1, position) for position in range(50)]
    assert all(0 < len(set(found)) == len(found) and set(found) <= set(lines) for found in seen)
    kept = Counter(line for found in seen for line in found)                  # binomial, 5 standard deviations
    assert all(abs(count - 1800) < 5 * math.sqrt(2000 * 0.1 * 0.9) for count in kept.values())
    first = Counter(found[0] for found in seen)
    assert all(abs(count - 200) < 5 * math.sqrt(2000 * 0.1 * 0.9) for count in first.values())
    assert all(len(augmented(["a"], 0.9, 0, position)) == 1 for position in range(99))
    assert sorted(augmented(lines, 0.0, 0, 3)) == lines


def test_batches_depend_on_the_position_alone(data, tmp_path):
    """Parts of 3 ranks and 2 micro-batches, from any step: together the batch of one rank."""
    keys = "line_dropout=0.3", "batch_size=13"
    whole = list(build_task(settings(data, tmp_path, *keys), Ranks(0, 1, CPU)).batches(0))
    tasks = [build_task(settings(data, tmp_path, "accumulate=2", *keys), Ranks(rank, 3, CPU)) for rank in range(3)]
    parts = [list(task.batches(4)) for task in tasks]
    for step in (4, 5):
        found = {}
        for part in (parts[rank][2 * (step - 4) + micro] for micro in range(2) for rank in range(3)):
            for at, name, label, ids, weights in zip(part["position"].tolist(), part["id"], part["label"].tolist(),
                                                     *part["inputs"]):
                assert at not in found
                found[at] = name, label, {(i, w) for i, w in zip(ids.tolist(), weights.tolist()) if w}
        batch = whole[step]
        assert sorted(found) == batch["position"].tolist() == list(range(13 * step, 13 * step + 13))
        for at, name, label, ids, weights in zip(batch["position"].tolist(), batch["id"], batch["label"].tolist(),
                                                 *batch["inputs"]):
            assert found[at] == (name, label, {(i, w) for i, w in zip(ids.tolist(), weights.tolist()) if w})


def test_samples_without_text_are_not_learned_from_and_the_test_s_labels_are_not_used(data, tmp_path):
    texts, split = read_texts(data), {row.file: row for row in read_split(data / "split.csv").rows}
    task = build_task(settings(data, tmp_path), Ranks(0, 1, CPU))
    assert {name for batch in task.batches(0) for name in batch["id"]} <= set(task.ids)
    assert set(task.ids) == {name for name, row in split.items() if row.role == "train" and row.fold != 1 and texts[name]}
    other = [row._replace(label="food") if row.role == "test" else row for row in split.values()]
    write_split(tmp_path / "other.csv", Split(other))
    for run, file in (("one", data / "split.csv"), ("two", tmp_path / "other.csv")):
        train(settings(data, tmp_path / run, "max_steps=2", "unlabeled=test", f"teacher={data / 'logits'}", f"split={file}"),
              Ranks(0, 1, CPU))
    one, two = (torch.load(tmp_path / run / "model.pt", weights_only=True) for run in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


# ---------------------------------------------------------------- ranks, resuming
TAUGHT = "unlabeled=test", "teacher_weight=0.7"
CASES = {"soft": (*TAUGHT, "teacher={}/logits"), "projected": ("teacher={}/embeddings", "accumulate=2"),
         "bert": (*TAUGHT, "teacher={}/logits", "text_network={}/bert", "max_tokens=12", "lr=1e-3")}
COLUMNS = "loss", "loss/cross_entropy", "loss/teacher"


def in_double(rank, world, data, output, names):
    torch.set_default_dtype(torch.float64)
    try:
        for name in names:
            train(settings(data, output / f"{name}-{world}", *(key.format(data) for key in CASES[name])),
                  Ranks(rank, world, CPU))
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_two_and_three_ranks_run_the_same_training(data, tmp_path):
    """Parts of 1 to 5 texts of 9. To import BERT takes each process seconds: it is run on one and on three."""
    in_double(0, 1, data, tmp_path, list(CASES))
    run_ranks(2, in_double, data, tmp_path, ["soft", "projected"])
    run_ranks(3, in_double, data, tmp_path, list(CASES))
    for name in CASES:
        one, *others = (tmp_path / f"{name}-{world}" for world in (1, 2, 3) if (tmp_path / f"{name}-{world}").exists())
        weights = load_file(one / "checkpoints/last/network.safetensors")
        assert len(losses_of(one)) == 6 and min(rows(one, "loss/teacher")) > 0 and len(others) == 2 - (name == "bert")
        assert ("projector.weight" in weights) == (name == "projected")
        # No score depends on the keys' bias: its gradient is rounding alone, of which AdamW makes whole steps.
        check_same_training(one, others, COLUMNS, atol=1e-12, but="key.bias")


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_run_itself(data, tmp_path, name):
    more = [*(key.format(data) for key in CASES[name]), "dropout=0.3", "save_every=2", "swa=0.5"]
    whole, _ = stop_and_resume(5, lambda output, *keys: settings(data, output, *more, *keys), tmp_path,
                               TextClassificationTask, ("network", "average"))
    assert average_is_published(whole)
    assert not any(key.startswith("projector") for key in torch.load(whole / "model.pt", weights_only=True))


def test_a_checkpoint_of_other_texts_is_refused(data, tmp_path):
    train(settings(data, tmp_path / "run", "max_steps=1"), Ranks(0, 1, CPU))
    texts = read_texts(data)
    write_texts(tmp_path / "other.jsonl", {**texts, "train/food_00.png": ["read anew"]})
    for change, says in ((f"texts={tmp_path / 'other.jsonl'}", "its texts is"), ("fold=2", "its fold is"),
                         ("ngram_high=4", "its ngram_high is 5")):
        with pytest.raises(UserError, match=says):
            train(settings(data, tmp_path / "run", "resume=auto", change), Ranks(0, 1, CPU))


def test_the_rates_are_the_stated_ones(data, tmp_path):
    """2e-5 is of a batch of 64, as published; the table's is no rate of AdamW's."""
    for keys, batch in (((), 64), (bert(data), 64), (bert(data), 256)):
        task = build_task(settings(data, tmp_path, *keys, "lr=2e-5", f"batch_size={batch}"), Ranks(0, 1, CPU))
        groups = task.param_groups()
        assert {group["rule"] for group in groups} == {"fixed"}
        assert {group["lr"] for group in groups} == ({2e-5} if keys else {20.0, 2e-5})
        trained = [parameter for group in groups for parameter in group["params"]]
        assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in task.model.parameters()}
        task.cfg.classifier_lr = 2.0
        assert {group["lr"] for group in task.param_groups() if group["name"] == "classifier"} == {4e-5}
    for name, swa in (("ads_roberta", 0.25), ("ads_bert_ext", 0.25), ("ads_bert", 0.0)):
        cfg = load_config(name)
        assert (cfg.lr, cfg.lr_rule, cfg.batch_size, cfg.max_tokens, cfg.epochs) == (2e-5, "fixed", 64, 256, 30)
        assert (cfg.swa, cfg.label_smoothing, cfg.dropout, cfg.text_network[:4]) == (swa, 0.1, 0.3, "hfl/")


# ---------------------------------------------------------------- predictions, export
def test_predictions_are_out_of_fold_and_of_texts_alone(trained, tmp_path):
    data, output = trained
    out, texts = tmp_path / "P.safetensors", read_texts(data)
    runs = [str(output / str(fold)) for fold in (2, 0, 1)]
    given = ["--data", str(data), "--split", str(data / "split.csv"), "--out", str(out)]
    assert predict.main([*given, "--texts", str(data / "texts.jsonl"), *runs]) == 0
    found, split = read_predictions(out), {row.file: row for row in read_split(data / "split.csv").rows}
    assert found.classes == CLASSES and set(found.ids) == {name for name in split if texts[name]}
    assert dict(zip(found.ids, found.folds.tolist())) == {name: split[name].fold for name in found.ids}
    networks = [load_run(output / str(fold))[0] for fold in range(3)]
    for name in found.ids[::6]:
        logits = torch.stack([network(*network.encoder.inputs([[network.encoder.prepare(line) for line in texts[name]]]))[0]
                              for network in networks]).detach()
        expected = logits[split[name].fold] if split[name].role == "train" else logits.mean(0)
        assert torch.allclose(found.join([name])[0][0], expected, atol=1e-4), name
    right = [CLASSES[values.argmax()] == split[name].label for name, values in zip(found.ids, found.values)
             if split[name].role == "test"]
    assert len(right) == 9 and sum(right) >= 8

    with pytest.raises(UserError, match="--texts"):
        predict.main([*given, *runs])
    write_texts(tmp_path / "few.jsonl", {name: lines for name, lines in texts.items() if name != "test/car_21.png"})
    with pytest.raises(UserError, match="has no entry of test/car_21.png"):
        predict.main([*given, "--texts", str(tmp_path / "few.jsonl"), *runs])


def test_the_export_says_the_same_without_torch(trained, monkeypatch):
    """Through the program that serves: any text, one of a single character, one of words that it does not know."""
    data, output = trained
    monkeypatch.setattr("sys.argv", ["onnx_export.py", str(output / "0")])
    onnx_export.main()
    served, (network, cfg) = load_network(output / "0/model.onnx"), load_run(output / "0")
    assert served.task == "text_classification" and served.classes == CLASSES
    assert "image_size" not in served.about and "fit" not in served.about and served.about["config"]["fold"] == 0
    if cfg.text_network == "ngrams":
        assert served.about["ngrams"] == {"low": 1, "high": 5, "buckets": 512}
    for lines in (*read_texts(data).values(), ["a"], ["?", "新"], ["wheel " * 500], ["x" * 3000]):
        text = document(lines)
        if not text:
            assert served.logits(None, text) is None
            continue
        with torch.no_grad():
            expected, = network(*network.encoder.inputs([[network.encoder.prepare(line) for line in text.split("\n")]]))
        assert np.abs(served.logits(None, text) - expected.numpy()).max() < 1e-5 * max(1, expected.abs().max()), text
    session = onnxruntime.InferenceSession(output / "0/model.onnx", providers=["CPUExecutionProvider"])
    inputs = dict(zip([port.name for port in session.get_inputs()],
                      network.encoder.random_inputs(5, np.random.default_rng(0))))
    logits, probabilities = session.run(["logits", "probabilities"], inputs)
    assert np.allclose(probabilities, torch.from_numpy(logits).softmax(1), atol=1e-5)


def test_the_table_in_16_bits_and_none_in_8(trained, monkeypatch):
    """Weights to 2^-11 of themselves."""
    data, output = trained
    network, cfg = load_run(output / "0")
    if cfg.text_network != "ngrams":
        return  # for the time it takes: the same lines write it
    monkeypatch.setattr("sys.argv", ["onnx_export.py", str(output / "0"), "--fp16"])
    onnx_export.main()
    stored = {tuple(weight.dims): weight.data_type for weight in onnx.load(output / "0/model.onnx").graph.initializer}
    served = load_network(output / "0/model.onnx")
    assert stored[512, 8] == onnx.TensorProto.FLOAT16 and served.about["precision"] == "fp16"
    table, weight = network.encoder.table.detach(), network.classify[1].weight.detach()
    for text in filter(None, map(document, list(read_texts(data).values())[:10])):
        rows, shares = network.encoder.inputs([[network.encoder.prepare(line) for line in text.split("\n")]])
        with torch.no_grad():
            expected, = network(rows, shares)
        # The sum of weights of length 1 is the root of their number at most; four factors of a logit are rounded.
        most = math.sqrt(rows.shape[1]) * (weight.abs() @ table[rows[0]].abs().amax(0)).max() + 1
        assert 0 < np.abs(served.logits(None, text) - expected.numpy()).max() < 4 * 2 ** -11 * most
    monkeypatch.setattr("sys.argv", ["onnx_export.py", str(output / "0"), "--int8"])
    with pytest.raises(UserError, match="is for networks that embed.*use --fp16"):
        onnx_export.main()


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize("keys, says", [
    (("split=",), "fold=1: needs split"),
    (("split=", "fold=-1"), "split: no file given.*adverts split"),
    (("texts=",), "texts: no file given.*adverts ocr"),
    (("mixup=0.4",), "mixup: no such key"),
    (("ngram_low=6",), "ngram_low=6: above ngram_high=5"),
    (("ngram_buckets=16777216", "embedding_size=8192"), "at most"),
    (("text_network=no/such/encoder",), "no such folder, and no name on the Hugging Face hub"),
    (("text_network=DIR",), "has no config.json"),
    (("text_network=DIR/bert", "max_tokens=64"), "max_tokens=64: do not fit together"),
    (("text_network=DIR/bert", "pooling=max"), "choose from cls, mean"),
    (("batch_size=2", "accumulate=2", "WORLD"), "too small"),
])
def test_keys_that_do_not_fit_together_are_one_line(data, tmp_path, keys, says):
    world = 2 if "WORLD" in keys else 1
    keys = [key.replace("DIR", str(data)) for key in keys if key != "WORLD"]
    with pytest.raises(UserError, match=says) as error:
        build_task(settings(data, tmp_path, *keys), Ranks(0, world, CPU))
    assert "\n" not in str(error.value)


def test_texts_that_do_not_fit_the_split_are_one_line(data, tmp_path):
    texts = read_texts(data)
    write_texts(tmp_path / "few", {name: lines for name, lines in texts.items() if name != "train/food_03.png"})
    write_texts(tmp_path / "blank", {name: [] for name in texts})
    (tmp_path / "other").write_text("[]")
    for name, says in (("few", "has no entry of train/food_03.png"), ("blank", "none of the samples.*has a text"),
                       ("other", "other"), ("nowhere", "nowhere")):
        with pytest.raises(UserError, match=says) as error:
            build_task(settings(data, tmp_path / "run", f"texts={tmp_path / name}"), Ranks(0, 1, CPU))
        assert "\n" not in str(error.value)


def test_ngrams_need_no_transformers_and_an_encoder_says_what_is_missing(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert isinstance(build_task(settings(data, tmp_path), Ranks(0, 1, CPU)).encoder, NgramNetwork)
    with pytest.raises(UserError, match="pip install transformers; or use text_network=ngrams"):
        build_task(settings(data, tmp_path, *bert(data)), Ranks(0, 1, CPU))


def test_without_the_hub_a_name_fails_at_once(data, tmp_path, monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(UserError, match="127.0.0.1:9 cannot be reached; give a folder") as error:
        build_task(settings(data, tmp_path / "run", "text_network=hfl/chinese-bert-wwm"), Ranks(0, 1, CPU))
    assert time.monotonic() - began < 10 and "\n" not in str(error.value)
    cached = tmp_path / "models--hfl--chinese-bert-wwm"     # as the hub's own library lays it out: then nobody is asked
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    shutil.copytree(data / "bert", cached / "snapshots" / ("0" * 40))
    cfg = settings(data, tmp_path / "run", "text_network=hfl/chinese-bert-wwm", "max_tokens=8")
    found = build_task(cfg, Ranks(0, 1, CPU))
    expected = load_file(data / "bert/model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in found.encoder.model.state_dict().items())


class Harm:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_nothing_of_an_encoder_s_folder_is_executed(data, tmp_path):
    """Code beside the config, a kernel's name that would be fetched and run, a pickle instead of weights."""
    harm = tmp_path / "harm"
    (tmp_path / "modeling.py").write_text(f"open({str(harm)!r}, 'w')")
    plain = hf_encoder(str(data / "bert"), True, "cls", 8)
    for number, changes in enumerate(({"auto_map": {"AutoConfig": "modeling.C", "AutoModel": "modeling.M"}},
                                      {"_attn_implementation": "someone/kernels", "attn_implementation": "someone/kernels"},
                                      {"quantization_config": {"quant_method": "awq"}})):
        folder = tmp_path / str(number)
        write_bert(folder, **changes)
        (folder / "modeling.py").write_text((tmp_path / "modeling.py").read_text())
        found = hf_encoder(str(folder), True, "cls", 8)
        assert all(torch.equal(value, found.state_dict()[name]) for name, value in plain.state_dict().items())
        assert not {"auto_map", "quantization_config"} & found.describe()["config"].keys()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(harm), protocol=2))
    with pytest.raises(UserError, match="pytorch_model.bin: cannot be read as weights"):
        hf_encoder(str(folder), True, "cls", 8)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="has no weights"):
        hf_encoder(str(folder), True, "cls", 8)
    assert not harm.exists()


def test_weights_as_older_encoders_name_them_are_read(data, tmp_path):
    """Below `bert.`, with gamma and beta, and with heads that are not wanted; other weights are refused."""
    encoder = hf_encoder(str(data / "bert"), True, "cls", 8)
    old = {"bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
           for name, value in encoder.model.state_dict().items()}
    folder = write_bert(tmp_path / "old")
    (folder / "model.safetensors").unlink()
    torch.save({**old, "cls.predictions.bias": torch.ones(3)}, folder / "pytorch_model.bin")
    found = hf_encoder(str(folder), True, "cls", 8).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in encoder.state_dict().items())
    last = "bert.encoder.layer.1.output.dense.weight"
    for weights, says in (({name: value for name, value in old.items() if name != last}, "1 tensors.*missing"),
                          ({**old, last: torch.ones(3, 3)}, "cannot be used as an encoder"),
                          ({"a": torch.ones(1)}, "missing")):
        torch.save(weights, folder / "pytorch_model.bin")
        with pytest.raises(UserError, match=says) as error:
            hf_encoder(str(folder), True, "cls", 8)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("change, says", [
    ({"model_type": "someone/model"}, "is not known"), ({"model_type": None}, "is not known"),
    ({"hidden_size": 1 << 30}, "above"), ({"num_hidden_layers": 100_000}, "layers"), ({"num_hidden_layers": 0}, "layers"),
    ({"vocab_size": 1 << 21, "hidden_size": 1 << 20}, "parameters"), ({"vocab_size": 3}, "words"),
    ({"hidden_size": "x"}, ""), ({"hidden_act": "__import__"}, ""), ({"vocab_size": float("inf")}, "above"),
])
def test_an_encoder_in_an_untrusted_run_is_bounded(data, change, says):
    info = hf_encoder(str(data / "bert"), True, "cls", 8).describe()
    began = time.process_time()
    with pytest.raises(UserError, match=f"run.json: cannot be used as an encoder.*{says}") as error:
        restored_encoder({**info, "config": {**info["config"], **change}}, "cls", 8)
    assert "\n" not in str(error.value) and time.process_time() - began < 5


def test_an_untrusted_run_is_one_line(trained):
    _, output = trained
    info, (_, cfg) = read_info(output / "0"), load_run(output / "0")
    assert info["classes"] == CLASSES and info["num_classes"] == 3
    changes = [{"classes": None}, {"classes": ["a", "a"]}]
    if cfg.text_network != "ngrams":
        changes += [{"encoder": None}, {"encoder": []}, {"encoder": {**info["encoder"], "tokenizer": {}}},
                    {"encoder": {**info["encoder"], "config": []}}, {"encoder": {**info["encoder"], "tokenizer": "x"}}]
    for change in changes:
        with pytest.raises(UserError, match="run.json") as error:
            TextClassificationTask.restore(cfg, {**info, **change})
        assert "\n" not in str(error.value)


def test_the_limits_of_ngrams_are_those_of_serving():
    assert encoders.ngram_network(Ngrams(), 64).table.shape == (1 << 16, 64)
    keys = TextClassificationTask.defaults
    from inference.ngrams import MAX_BUCKETS, MAX_HIGH
    assert (keys["ngram_high"].most, keys["ngram_buckets"].most) == (MAX_HIGH, MAX_BUCKETS)
