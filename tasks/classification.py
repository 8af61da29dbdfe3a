"""Classification of images: cross entropy, mixed samples, and a cached teacher where there is one.

    python train_v2.py configs/classification_small data=DIR:1:labelled eval_data=DIR [teacher=FILE]
    python train_v2.py configs/ads_small data=DIR split=SPLIT.csv fold=0
    python train_v2.py configs/ads_small data=DIR split=SPLIT.csv teacher=FILE unlabeled=test teacher_on=unlabeled

Either every folder of images is a class, or a split (`python -m adverts split`) names each image's class and fold. What the
teacher, another model, said of the training images beforehand is a file of `engine.predictions`, joined by sample id. Its
embeddings are met by a projection that is not published, its logits (of the same classes, joined by name) by the network's
own; see tasks/labels.py.
"""
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.special import betaincinv
from torch import nn

from augment import Augment
from backbones import get_model
from engine.keys import Key
from engine.random import uniform
from eval.folder import Item, find_images, read_images
from inference.errors import UserError, printable
from inference.image import fit_square
from tasks import images, labels
from tasks.base import Evaluation, Export
from tasks.labels import Classifier, Student

AT_ONCE = 64           # images of an evaluation


class ClassificationTask(images.ImageTask):
    """A classifier of images."""
    sees = "image"

    defaults = {
        **images.KEYS,
        **labels.KEYS,
        "expansion": Key(1, "a folder is a class", choices=(1,)),
        "eval_data": Key("", "folder to evaluate on: CLASS/*.jpg, classes as in data"),
        "head": Key("gap", "of the network; timm: its own, with all of its pretrained weights",
                    choices=("flatten", "gap", "squeeze", "timm")),
        "norm": Key("ln", "in the head; lbn: LayerNorm, then BatchNorm", choices=("ln", "bn", "lbn")),
        "embedding_size": Key(256, "numbers before the last layer", least=1, most=images.MAX_EMBEDDING),
        "drop_path": Key(0.0, "with head=timm: rate at which whole blocks are skipped in training, rising to it with depth",
                         least=0, below=1),
        "freeze": Key(0, "with head=timm: the first so many groups of layers, of which the stem is one and each stage, keep "
                         "their pretrained weights", least=0),
        "mixup": Key(0.0, "each sample is mixed with another of its batch, by shares of a Beta(mixup, mixup) distribution "
                          "(https://arxiv.org/abs/1710.09412); 0: off", least=0),
    }

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        labels.check_config(cfg)
        if cfg.split and cfg.eval_data:
            raise UserError(f"eval_data={cfg.eval_data}: a run on a split is evaluated on one of its folds alone; set "
                            "fold=K and no eval_data")
        if cfg.split and cfg.sampler != "permutation":
            raise UserError(f"sampler={cfg.sampler}: takes folders as classes, not a split; use sampler=permutation")
        if cfg.head != "timm" and (cfg.freeze or cfg.drop_path):
            raise UserError(f"freeze={cfg.freeze}, drop_path={cfg.drop_path:g}: need head=timm, and here it is {cfg.head}")

    def __init__(self, cfg, ranks):
        super().__init__(cfg, ranks)
        chosen = labels.choose(cfg)
        if chosen:
            self._take(chosen)
        for root, _ in self.roots:
            if not chosen and (not root.labelled or root.expansion != 1):
                raise UserError(f"data={root.folder}: each folder in it is a class here; write {root.folder}:1:labelled")
        encoder = get_model(cfg, None if ranks.rank == 0 else False)  # rank 0 alone fetches weights
        self.check_batch(encoder)
        self.read_images()
        self.classes = chosen.classes if chosen else self.images.labels
        self.targets = labels.Targets(cfg, self.classes)
        if not chosen:
            self.eval_items = _items(cfg.eval_data, self.classes) if cfg.eval_data else []
        self.split = chosen.split.digest() if chosen else None
        number = {name: c for c, name in enumerate(self.classes)}
        # Of the classes that the images are to `ImageFolders`: with a split, each image is one.
        self.label = torch.tensor([number.get(chosen.learned[name], -1) if chosen else number[name]
                                   for name in self.images.labels])
        self.notes += self.targets.note(list(self.images.unique_ids()))
        self.published = Classifier(encoder, encoder.width, len(self.classes), cfg.dropout)
        projected = self.targets.projection
        self.model = Student(self.published, nn.Linear(encoder.width, projected) if projected else None)
        self.cache_images()

    def _take(self, chosen: labels.Chosen) -> None:
        """Learn from the images that a split names and evaluate on its fold, instead of all that lies in the folders."""
        if len(self.roots) != 1 or self.roots[0][0].labelled:
            raise UserError("data: with split=FILE, one folder, without :labelled; the split says what each image is")
        (root, names), = self.roots
        if missing := sorted({*chosen.learned, *(chosen.evaluated or ())}.difference(names)):
            raise UserError(printable(f"split={self.cfg.split}: {missing[0]} is not below data={root.folder} "
                                      f"({len(missing)} images are missing)"))
        self.roots = [(root._replace(expansion=1), [name for name in names if name in chosen.learned])]
        self.eval_items = [Item(Path(root.folder) / name, name, label, False)
                           for name, label in (chosen.evaluated or {}).items()]

    @property
    def evaluates(self) -> bool:
        return super().evaluates or self.cfg.fold >= 0

    @classmethod
    def restore(cls, cfg, info: dict) -> nn.Module:
        encoder = get_model(cfg, pretrained=False)
        return Classifier(encoder, encoder.width, len(labels.class_names(info)), cfg.dropout)

    @classmethod
    def export(cls, cfg, info: dict, network: nn.Module, evaluation: dict | None = None) -> Export:
        return Export(labels.Probabilities(network), cfg["image_size"], ("logits", "probabilities"),
                      {"classes": labels.class_names(info)})

    def describe(self) -> dict:
        return {**super().describe(), "num_classes": len(self.classes), "classes": self.classes, "split": self.split,
                "fold": self.cfg.fold}

    def compatibility_keys(self) -> dict:
        keys = ("head", "norm", "embedding_size", "freeze", "fold", "unlabeled")
        return {**super().compatibility_keys(), **{key: self.cfg[key] for key in keys}, **self.targets.digests(),
                "split": self.split}

    def param_groups(self) -> list[dict]:
        return labels.param_groups(self.cfg, self.model)

    def batches(self, first_step: int) -> Iterator[dict]:
        """As of every image task, with `label` -1 where there is none. With `mixup`, images of this rank's part that are to
        be mixed with one of another part are followed by those: only the first `len(batch["partner"])` are samples."""
        for batch in super().batches(first_step):
            batch["label"] = self.label[batch["label"]]
            yield self._with_partners(batch) if self.cfg.mixup else batch

    def _with_partners(self, batch: dict) -> dict:
        """Add `partner` `[B]`, the place in `batch` of the sample that each is mixed with: the one as far from the end of
        the global batch as it is from the start. Samples that this rank does not have are added at the end."""
        position, size = batch["position"], self.cfg.batch_size
        partner = position + size - 1 - 2 * (position % size)
        missing = partner[~torch.isin(partner, position)]
        if len(missing):
            index, view, label = self.images.locate(self.sampler.samples(missing))
            more = {"image": self.images.pixels(index).to(self.ranks.device, non_blocking=True), "view": view,
                    "label": self.label[label], "position": missing}
            batch = {**batch, **{key: torch.cat([batch[key], value]) for key, value in more.items()},
                     "id": batch["id"] + [self.images.ids[i] for i in index.tolist()]}
        place = {at: i for i, at in enumerate(batch["position"].tolist())}
        return {**batch, "partner": torch.tensor([place[at] for at in partner.tolist()])}

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """See `labels.Targets.terms`. With `accumulate` each is the mean over a micro-batch."""
        image = self.augment(batch["image"], batch["position"], batch["view"], self.cfg.image_size)
        parts = [(batch["id"], batch["label"], None)]
        if self.cfg.mixup:
            partner = batch["partner"]
            drawn = uniform(self.cfg.seed, "mixup", batch["position"][:len(partner)])
            share = torch.from_numpy(betaincinv(self.cfg.mixup, self.cfg.mixup, drawn.numpy()))                 # [B]
            parts = [(batch["id"][:len(partner)], batch["label"][:len(partner)], share),
                     ([batch["id"][at] for at in partner], batch["label"][partner], 1 - share)]
            own = share.to(image)[:, None, None, None]
            image = own * image[:len(partner)] + (1 - own) * image[partner.to(image.device)]
        with self.autocast():
            outputs = self.forward(image)
        return self.targets.terms(outputs, parts)

    @torch.no_grad()
    def predict(self, batches: Iterable[dict]) -> dict[str, torch.Tensor]:
        """{sample id: logits float32 `[C]`} of the published network, without augmentation and dropout: a teacher's file
        is `write_predictions(path, task.predict(batches), "logits", task.classes)`."""
        was_training, plain, found = self.published.training, Augment("none", self.cfg.seed), {}
        self.published.eval()
        for batch in batches:
            image = plain(batch["image"], batch["position"], batch["view"], self.cfg.image_size)
            found.update(zip(batch["id"], self.published(image).float().cpu()))
        self.published.train(was_training)
        return found

    @classmethod
    def predict_split(cls, cfg, network: nn.Module, names: list[str], data, texts=None) -> tuple[dict, dict]:
        """({sample id: logits float32 `[C]`}, {sample id: why it was skipped}) of the images `names` below the folder
        `data`, by a network that `restore` made. texts: not used."""
        items = [Item(Path(data) / name, name, "", False) for name in names]
        return image_logits(network, items, cfg.image_size, cfg.fit)

    def evaluate(self) -> Evaluation | None:
        """See `labels.evaluation`: of the fold held out, or of `eval_data`."""
        if not self.evaluates:
            return None
        number = {name: c for c, name in enumerate(self.classes)}
        source = f"fold {self.cfg.fold} of {self.cfg.split}" if self.cfg.fold >= 0 else self.cfg.eval_data
        found, skipped = image_logits(self.published, self.eval_items, self.cfg.image_size, self.cfg.fit)
        if not found:
            raise UserError(f"{source}: none of its images can be used")
        used = [item for item in self.eval_items if item.name in found]
        return labels.evaluation(torch.stack([found[item.name] for item in used]),
                                 torch.tensor([number[item.type] for item in used]), {"skipped": skipped, "data": source},
                                 self.cfg.fold)


def image_logits(network: nn.Module, items: list[Item], size: int, fit: str) -> tuple[dict, dict]:
    """({name: logits float32 `[C]`}, {name: why it was skipped}) of image files, by a classifier of `size` pixels."""
    found, skipped = {}, {}
    decoded = read_images(items, lambda image: np.ascontiguousarray(fit_square(image, size, fit)[..., ::-1]), size)
    while part := list(itertools.islice(decoded, AT_ONCE)):
        skipped |= {item.name: reason for item, _, reason in part if reason is not None}
        used = [(item, pixels) for item, pixels, reason in part if reason is None]
        if used:
            logits = torch.from_numpy(images.network_outputs(network, np.stack([pixels for _, pixels in used])))
            found |= {item.name: row for (item, _), row in zip(used, logits)}
    return found, skipped


def _items(folder: str, classes: list[str]) -> list:
    """The images to evaluate on. Raises UserError for one of a class that is not learned."""
    items = find_images(folder)
    if unknown := sorted({item.type for item in items}.difference(classes)):
        raise UserError(printable(f"eval_data={folder}: has images of the class {unknown[0]!r}, which data has not"))
    return items
