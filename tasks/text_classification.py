"""Classification by the text in images: cross entropy, and a cached teacher where there is one.

    python train_v2.py configs/ads_text_small split=S.csv texts=T.jsonl fold=0
    python train_v2.py configs/ads_text_small split=S.csv texts=T.jsonl teacher=FILE unlabeled=test teacher_on=unlabeled

The texts are those that `python -m adverts ocr` read, joined by sample id. Samples without text are not learned from, and
nothing is said of them. Labels, folds and teachers are those of images; see tasks/labels.py.
"""
import hashlib
import json
from collections.abc import Iterator

import torch
from torch import nn

from adverts.texts import read_texts
from backbones.text import MAX_TOKENS, POOLINGS, NgramNetwork, hf_encoder, ngram_network, restored_encoder
from dataset import Permutation
from engine.distributed import shard_range
from engine.keys import Key
from engine.random import uniform
from inference.errors import UserError, printable
from inference.image import map_ahead
from inference.ngrams import MAX_BUCKETS, MAX_HIGH, Ngrams, document
from tasks import labels
from tasks.base import Evaluation, Export, Task
from tasks.labels import Classifier, Student

NGRAMS = "ngrams"  # the `text_network` that is ours
AT_ONCE = 64       # texts of an evaluation
AHEAD = 4          # batches that are made before they are asked for


class TextClassificationTask(Task):
    """A classifier of texts. A text is seen anew each time: its lines in another order, some of them dropped."""

    sees = "text"
    defaults = {
        **labels.KEYS,
        "data": Key("", "folder of the images; not read, since texts says what is written in them"),
        "texts": Key("", "the text in the images, TEXTS.jsonl of `python -m adverts ocr`"),
        "text_network": Key(NGRAMS, "ngrams: a table of hashed character n-grams; or an encoder of Hugging Face: a name on "
                                    "its hub, or a folder with config.json, tokenizer.json and model.safetensors"),
        "pretrained": Key(True, "begin with the weights of that encoder; false: at random"),
        "pooling": Key("cls", "of that encoder's hidden states: of the first token, or their mean", choices=POOLINGS),
        "max_tokens": Key(256, "of a text, for that encoder; the rest is cut off", least=4, most=MAX_TOKENS),
        "embedding_size": Key(64, "of ngrams: numbers before the last layer", least=1, most=8192),
        "ngram_low": Key(1, "of ngrams: characters in the shortest", least=1, most=MAX_HIGH),
        "ngram_high": Key(5, "of ngrams: characters in the longest", least=1, most=MAX_HIGH),
        "ngram_buckets": Key(1 << 16, "of ngrams: rows of the table, into which they are hashed", least=1, most=MAX_BUCKETS),
        "ngram_dropout": Key(0.3, "of ngrams: share of a text's that are dropped, anew each time", least=0, below=1),
        "table_lr": Key(20.0, "of ngrams: rate of the table, by plain descent with momentum; whatever the batch", least=0),
        "line_dropout": Key(0.1, "share of a text's lines that are dropped, anew each time; one stays", least=0, below=1),
    }

    @classmethod
    def check_config(cls, cfg) -> None:
        labels.check_config(cfg)

    def __init__(self, cfg, ranks):
        super().__init__(cfg, ranks)
        for key, command in (("split", "split"), ("texts", "ocr")):
            if not cfg[key]:
                raise UserError(f"{key}: no file given; write {key}=FILE, made by `python -m adverts {command}`")
        chosen, texts = labels.choose(cfg), read_texts(cfg.texts)
        lines = {name: _lines(texts, name, cfg.texts) for name in [*chosen.learned, *(chosen.evaluated or ())]}
        self.ids = [name for name in chosen.learned if lines[name]]
        self.split, self.classes, self.held_out = chosen.split.digest(), chosen.classes, chosen.evaluated or {}
        if not self.ids or not any(chosen.learned[name] for name in self.ids) and not cfg.teacher:
            raise UserError(f"texts={cfg.texts}: none of the samples to learn from has a text")
        self.smallest = cfg.batch_size // cfg.accumulate // ranks.world
        if not self.smallest:
            raise UserError(f"batch_size={cfg.batch_size}: too small to share among {ranks.world} processes x accumulate="
                            f"{cfg.accumulate}")
        self.targets = labels.Targets(cfg, self.classes)
        number = {name: c for c, name in enumerate(self.classes)}
        self.label = torch.tensor([number.get(chosen.learned[name], -1) for name in self.ids])
        if without := len(chosen.learned) - len(self.ids):
            self.notes.append(f"{without:,} of {len(chosen.learned):,} samples have no text, and are not learned from")
        self.notes += self.targets.note(self.ids)
        torch.manual_seed(cfg.seed)  # of the model's first weights; DDP hands rank 0's to all
        self.encoder = (ngram_network(_ngrams(cfg), cfg.embedding_size) if cfg.text_network == NGRAMS else
                        hf_encoder(cfg.text_network, cfg.pretrained, cfg.pooling, cfg.max_tokens))
        self.lines = {name: [self.encoder.prepare(line) for line in found] for name, found in lines.items()}
        self.digest = hashlib.blake2b(json.dumps([lines[name] for name in self.ids]).encode(), digest_size=8).hexdigest()
        if isinstance(self.encoder, NgramNetwork):
            self.encoder.measure_rarity([self.lines[name] for name in self.ids])
        self.published = Classifier(self.encoder, self.encoder.width, len(self.classes), cfg.dropout)
        projected = self.targets.projection
        self.model = Student(self.published, nn.Linear(self.encoder.width, projected) if projected else None)
        self.sampler = Permutation(len(self.ids), cfg.seed)
        self.total_steps = cfg.max_steps or -(-cfg.epochs * len(self.ids) // cfg.batch_size)

    @classmethod
    def restore(cls, cfg, info: dict) -> nn.Module:
        names = labels.class_names(info)
        encoder = (ngram_network(_ngrams(cfg), cfg.embedding_size) if cfg.text_network == NGRAMS else
                   restored_encoder(info.get("encoder"), cfg.pooling, cfg.max_tokens))
        return Classifier(encoder, encoder.width, len(names), cfg.dropout)

    @classmethod
    def export(cls, cfg, info: dict, network: nn.Module, evaluation: dict | None = None) -> Export:
        encoder, about = network.encoder, {"classes": labels.class_names(info)}
        if isinstance(encoder, NgramNetwork):
            names, about = ("rows", "weights"), {**about, "ngrams": encoder.ngrams._asdict()}
        else:
            names, about = ("input_ids", "attention_mask"), {**about, "tokenizer": encoder.tokenizer.to_str(),
                                                             "max_tokens": encoder.max_tokens}

        def inputs(batch, generator):
            return dict(zip(names, encoder.random_inputs(batch, generator)))
        return Export(labels.Probabilities(network), 0, ("logits", "probabilities"), about, inputs=inputs)

    def describe(self) -> dict:
        encoder = {} if isinstance(self.encoder, NgramNetwork) else {"encoder": self.encoder.describe()}
        return {"num_classes": len(self.classes), "classes": self.classes, "split": self.split, "fold": self.cfg.fold,
                "samples": len(self.ids), "steps": self.total_steps, **encoder}

    def compatibility_keys(self) -> dict:
        keys = ("text_network", "embedding_size", "ngram_low", "ngram_high", "ngram_buckets", "pooling", "max_tokens",
                "fold", "unlabeled")
        return {**super().compatibility_keys(), **{key: self.cfg[key] for key in keys}, **self.targets.digests(),
                "split": self.split, "texts": self.digest}

    def example(self) -> tuple[torch.Tensor, ...]:
        inputs = self.encoder.inputs([self.lines[self.ids[0]]] * self.smallest)
        return tuple(value.to(self.ranks.device) for value in inputs)

    def param_groups(self) -> list[dict]:
        table = None
        if isinstance(self.encoder, NgramNetwork):
            # With an eps far above the gradients AdamW is plain descent with momentum, at table_lr / eps. Its own steps,
            # as large for an n-gram of one text as for one of a hundred, learn the rare ones by heart.
            table = [{"params": [self.encoder.table], "lr": self.cfg.table_lr, "rule": "fixed", "weight_decay": 0.0,
                      "eps": 1.0, "name": "table"}]
        return labels.param_groups(self.cfg, self.model, table)

    # ---------------------------------------------------------------- batches
    def batches(self, first_step: int) -> Iterator[dict]:
        """`inputs`, the encoder's, on the rank's device; `id`, `label` int64 `[B]`, -1 where there is none, `position`."""
        cfg, device = self.cfg, self.ranks.device
        parts = ((step, micro) for step in range(first_step, self.total_steps) for micro in range(cfg.accumulate))
        for batch in map_ahead(lambda part: self._load(*part), parts, AHEAD, threads=1):
            yield {**batch, "inputs": tuple(value.to(device, non_blocking=True) for value in batch["inputs"])}

    def _load(self, step: int, micro: int) -> dict:
        cfg = self.cfg
        part = shard_range(cfg.batch_size, micro, cfg.accumulate)
        mine = [part[i] for i in shard_range(len(part), self.ranks.rank, self.ranks.world)]
        position = step * cfg.batch_size + torch.tensor(mine)                                             # [B]
        at = self.sampler.samples(position)
        ids = [self.ids[i] for i in at.tolist()]
        inputs = self.encoder.inputs([augmented(self.lines[name], cfg.line_dropout, cfg.seed, place)
                                      for name, place in zip(ids, position.tolist())])
        if isinstance(self.encoder, NgramNetwork) and cfg.ngram_dropout:
            rows, weights = inputs                                                                        # [B,L]
            kept = uniform(cfg.seed, "n-grams", position[:, None], rows) >= cfg.ngram_dropout
            inputs = rows, weights * kept
        return {"inputs": inputs, "id": ids, "label": self.label[at], "position": position}

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """See `labels.Targets.terms`. With `accumulate` each is the mean over a micro-batch."""
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.cfg.precision == "bf16"):
            outputs = self.forward(*batch["inputs"])
        return self.targets.terms(outputs, [(batch["id"], batch["label"], None)])

    # ---------------------------------------------------------------- what it says
    @property
    def evaluates(self) -> bool:
        return self.cfg.fold >= 0

    def evaluate(self) -> Evaluation | None:
        """See `labels.evaluation`: of the texts of the fold held out."""
        if not self.evaluates:
            return None
        names = [name for name in self.held_out if self.lines[name]]
        if not names:
            raise UserError(f"fold {self.cfg.fold} of {self.cfg.split}: none of its samples has a text")
        found = text_logits(self.published, {name: self.lines[name] for name in names})
        label = torch.tensor([self.classes.index(self.held_out[name]) for name in names])
        return labels.evaluation(torch.stack([found[name] for name in names]), label,
                                 {"data": f"fold {self.cfg.fold} of {self.cfg.split}",
                                  "without_text": len(self.held_out) - len(names)}, self.cfg.fold)

    @classmethod
    def predict_split(cls, cfg, network: nn.Module, names: list[str], data, texts=None) -> tuple[dict, dict]:
        """({sample id: logits float32 `[C]`}, {}) of the samples `names` that have a text, by a network that `restore` made.
        texts: {sample id: lines} of `adverts.texts.read_texts`; data: not used."""
        if texts is None:
            raise UserError("the run classifies texts; give --texts texts.jsonl, made by `python -m adverts ocr`")
        lines = {name: [network.encoder.prepare(line) for line in _lines(texts, name, "--texts")] for name in names}
        return text_logits(network, {name: found for name, found in lines.items() if found}), {}


@torch.no_grad()
def text_logits(network: Classifier, lines: dict[str, list]) -> dict[str, torch.Tensor]:
    """{id: logits float32 `[C]`} of texts as the network's encoder has prepared them, on the network's device, without
    augmentation and dropout."""
    was_training, device, found, names = network.training, next(network.parameters()).device, {}, list(lines)
    network.eval()
    for start in range(0, len(names), AT_ONCE):
        part = names[start:start + AT_ONCE]
        inputs = network.encoder.inputs([lines[name] for name in part])
        found |= zip(part, network(*(value.to(device) for value in inputs)).float().cpu())
    network.train(was_training)
    return found


def augmented(lines: list, dropout: float, seed: int, position: int) -> list:
    """The lines of a text in a random order, each dropped at the rate `dropout`, but one: a function of (seed, position)."""
    drawn = uniform(seed, "lines", position, torch.arange(len(lines)), torch.tensor([[0], [1]]))          # [2,lines]
    order, keep = drawn[0].argsort().tolist(), drawn[1] >= dropout
    keep[drawn[1].argmax()] = True
    return [lines[i] for i in order if keep[i]]


def _lines(texts: dict[str, list[str]], name: str, source: str) -> list[str]:
    """The lines of a sample's text, cleaned; [] without text. Raises UserError where nothing was read of the sample."""
    if name not in texts:
        raise UserError(printable(f"{source}: has no entry of {name}; run `python -m adverts ocr` with that split again"))
    return document(texts[name]).splitlines()


def _ngrams(cfg) -> Ngrams:
    return Ngrams(cfg.ngram_low, cfg.ngram_high, cfg.ngram_buckets)
