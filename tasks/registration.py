"""Registration learning: every image, or every view of it, is a class; margin softmax over all of them."""
import torch
from torch import nn

from augment import Augment
from augment.image_cache import size_text
from backbones import get_model
from engine.distributed import free_memory
from engine.keys import Key
from engine.schedules import margin_factor, scaled_lr
from eval import evaluate_folder
from eval.calibrate import threshold_table
from inference.errors import UserError
from inference.model import are_thresholds
from losses import MARGINS, Margin, check_margin, get_margin
from partial_fc import LEANEST_UPDATE, PartialFC, memory_needed
from tasks import images, teachers
from tasks.base import Evaluation, Export

AT_ONCE = 256  # images that go through the network together, where class centers begin at images
RULES = {"sgd": "linear", "adamw": "sqrt"}  # how the rate of the class centers follows the batch


class RegistrationTask(images.ImageTask):
    """An embedding network under a margin softmax over class centers, which are sharded over the ranks."""

    defaults = {
        **images.KEYS,
        "head": Key("flatten", "of the network", choices=("flatten", "gap", "squeeze")),
        "norm": Key("ln", "in the head; lbn: LayerNorm, then BatchNorm", choices=("ln", "bn", "lbn")),
        "layout": Key(0, "the head also gets the image, averaged to so many cells a side; 0: it does not; an image_size of "
                         "128 goes into 8 or 16", least=0, most=32),
        "embedding_size": Key(256, "numbers in an embedding", least=1, most=images.MAX_EMBEDDING),
        "margin": Key("cosface", "of the softmax", choices=tuple(MARGINS)),
        "m": Key(0.4, "margin; for combined a list [m1, m2, m3]: cos(m1 * theta + m2) - m3", also=(list,)),
        "s": Key(64.0, "scale", above=0),
        "margin_warmup": Key(0.0, "the margin grows from 0 over this fraction of the run", least=0, most=1),
        "interclass": Key(0.0, "exclude negatives whose cosine is above this; 0: off", least=0),
        "sample_rate": Key(1.0, "share of the class centers in a step", above=0, most=1),
        "centres_init": Key("random", "images: each class center begins where the network, as it starts, sees an image of "
                                      "its class (https://arxiv.org/abs/1712.07136); for pretrained networks",
                            choices=("random", "images")),
        "centres_optimizer": Key("sgd", "of the class centers; sgd has momentum", choices=("sgd", "adamw")),
        "centres_lr": Key(0.1, "of the class centers, for a batch of 512; follows it linearly with sgd, by the square root "
                               "with adamw", least=0),
        "centres_momentum": Key(0.9, "of the class centers", least=0),
        "centres_weight_decay": Key(0.0, "of the class centers", least=0),
        **teachers.KEYS,
    }

    @classmethod
    def check_config(cls, cfg) -> None:
        super().check_config(cfg)
        if cfg.layout and cfg.image_size % cfg.layout:
            raise UserError(f"layout={cfg.layout}: image_size={cfg.image_size} must be a multiple of it")
        check_margin(cfg)

    def __init__(self, cfg, ranks):
        super().__init__(cfg, ranks)
        margin = get_margin(cfg)
        self.model = self.published = get_model(cfg, None if ranks.rank == 0 else False)  # rank 0 alone fetches weights
        self.check_batch(self.model)
        self.read_images()
        classes = self.images.num_classes
        if classes < ranks.world:
            raise UserError(f"data: {classes} classes cannot be shared by {ranks.world} processes; "
                            "use fewer (--nproc_per_node), more images, or a larger expansion")
        self.lesson = teachers.Lesson(cfg, self.published, self.images, ranks) if cfg.teacher else None
        if self.lesson:
            self.model = self.lesson.model
            self.notes += self.lesson.notes
        self.make_head(margin, classes)
        self.cache_images()

    def make_head(self, margin: Margin, classes: int) -> None:
        """The class centers. A subclass whose loss has none makes none."""
        cfg = self.cfg
        self._check_memory(classes)
        self.partial_fc = PartialFC(margin, cfg.embedding_size, classes, cfg.sample_rate,
                                    optimizer=cfg.centres_optimizer, update=LEANEST_UPDATE[cfg.centres_optimizer],
                                    momentum=cfg.centres_momentum, weight_decay=cfg.centres_weight_decay, seed=cfg.seed,
                                    device=self.ranks.device)
        self.sharded = {"centres": self.partial_fc}

    @classmethod
    def restore(cls, cfg, info: dict) -> nn.Module:
        return get_model(cfg, pretrained=False)

    @classmethod
    def export(cls, cfg, info: dict, network: nn.Module, evaluation: dict | None = None) -> Export:
        return Export(Normalized(network), cfg["image_size"], ("feats",), {
            "embedding_size": cfg["embedding_size"], "score": "(cosine + 1) / 2", "classes": info.get("num_classes"),
            "thresholds": None if evaluation is None else _thresholds(evaluation)})

    def compatibility_keys(self) -> dict:
        keys = ("head", "norm", "layout", "embedding_size", "centres_optimizer")
        taught = self.lesson.compatibility_keys() if self.lesson else {"teacher": None}
        return {**super().compatibility_keys(), **{key: self.cfg[key] for key in keys}, **taught}

    def param_groups(self) -> list[dict]:
        return self.lesson.param_groups() if self.lesson else super().param_groups()

    def begin_step(self, step: int, factor: float) -> dict[str, float]:
        cfg, margin = self.cfg, self.partial_fc.margin
        if step == 0 and cfg.centres_init == "images":
            self._imprint()
        margin.strength = margin_factor(step, self.total_steps, cfg.margin_warmup)
        lr = scaled_lr(cfg.centres_lr, cfg.batch_size, RULES[cfg.centres_optimizer]) * factor
        self.partial_fc.begin_step(step, lr, cfg.accumulate)
        shown = {"margin": margin.strength, "centres_lr": lr}
        if self.lesson:
            self.lesson.begin_step(step, self.total_steps, shown)
        return shown

    def finish_step(self, skip: torch.Tensor) -> None:
        super().finish_step(skip)
        if self.lesson:
            self.lesson.finish_step(skip)

    @torch.no_grad()
    def _imprint(self) -> None:
        """Turn each class center of this rank to the embedding of the first sample of its class, as it is."""
        plain, classes = Augment("none", self.cfg.seed), self.images.sample_classes()
        first = torch.full((self.images.num_classes,), len(classes))
        first.scatter_reduce_(0, classes, torch.arange(len(classes)), "amin")
        self.published.eval()
        for samples in first[self.partial_fc.classes.start:self.partial_fc.classes.stop].split(AT_ONCE):
            image, view, label = self.images.locate(samples)
            shown = plain(self.images.pixels(image).to(self.ranks.device), samples, view, self.cfg.image_size)
            with self.autocast():
                embeddings = self.published(shown)
            self.partial_fc.imprint(label, embeddings)
        self.published.train()

    def embeddings(self, batch: dict) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Of this rank's part of a micro-batch, augmented: `[B_local, D]`, or what `teachers.Student` makes of it."""
        image = self.augment(batch["image"], batch["position"], batch["view"], self.cfg.image_size)
        with self.autocast():
            return self.forward(image)

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """The margin softmax and, with a teacher, its terms."""
        margin, found = self.cfg.margin, self.embeddings(batch)
        if not self.lesson:
            return {margin: self.partial_fc(found, batch["label"])}
        embeddings, *projected = found
        return {margin: self.partial_fc(self.lesson.watched(margin, embeddings), batch["label"]),
                **self.lesson.terms(batch, embeddings, projected)}

    def evaluate(self) -> Evaluation | None:
        """Zero-shot metrics on `eval_data`: what `python -m eval --json` prints; the AUROC decides."""
        if not self.evaluates:
            return None
        found = evaluate_folder(self.outputs, self.cfg.eval_data, self.cfg.image_size, fit=self.cfg.fit).as_dict()
        return Evaluation({"auroc": found["auroc"], "tpr_at_fpr_1e-4": found["tpr_at_fpr"]["1e-4"], "top1": found["top1"]},
                          decides="auroc", document=found)

    def _check_memory(self, classes: int) -> None:
        """Told beforehand: a system whose memory is used up ends a process without a word."""
        cfg, ranks, host = self.cfg, self.ranks, torch.device("cpu")
        centers = memory_needed(classes, cfg.embedding_size, cfg.centres_optimizer, ranks.world)
        needs = {ranks.device: centers}
        needs[host] = needs.get(host, 0) + centers  # checkpoints copy them
        for device, needed in needs.items():
            free = free_memory(device)
            if needed > free:
                raise UserError(f"{classes:,} classes x embedding_size={cfg.embedding_size} over {ranks.world} processes: "
                                f"class centers, momentum and their copy for checkpoints take {size_text(needed)} of "
                                f"{device.type} memory in each, {size_text(max(0, free))} are free; use more processes or "
                                "machines, a smaller expansion or embedding_size, or fewer images")
        self.notes.append(f"class centers: {size_text(centers)} on each process, with momentum")


def _thresholds(evaluation: dict) -> dict | None:
    """The threshold table in an evaluation's JSON."""
    try:
        table = threshold_table(evaluation)
        if not are_thresholds(table or {}):
            raise ValueError
        return table
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError("eval.json: not what python -m eval --json prints; write it again or remove it") from None


class Normalized(nn.Module):
    """A network whose embeddings are brought to length 1."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, img):
        return nn.functional.normalize(self.network(img), dim=1)                  # [B, D]
