"""Teachers of an embedding network: what other networks see in the same images, as further terms of a run's loss.

    python train_v2.py configs/distill data=DIR teacher=work_dirs/larger                     # a run, or its model.onnx
    python train_v2.py configs/distill data=DIR teacher=open_clip:ViT-B-32-quickgelu:FILE    # CLIP, from a file of weights
    python train_v2.py configs/distill data=DIR teacher=ema teacher_term=relational          # the run's own average
    python -m tools.cache_teacher configs/distill TEACHER.safetensors data=DIR teacher=...   # once, for several runs

A teacher sees each sample's own view (turn, flip, half) without augmentation, the student sees it augmented. Its part of the
loss is one of four terms (losses/). Every line of the log says how large a term's gradient at the embedding is beside the
margin softmax's: `share/...`. About .2 is a good start; far below .05 a teacher says nothing.
"""
import contextlib
import copy
import hashlib
import json
import math
from pathlib import Path
from typing import Protocol

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from easydict import EasyDict
from torch import nn
from torchvision.transforms import Normalize

from augment import Augment
from backbones import get_model, load_weights, read_weights
from dataset import ImageFolders
from engine.distributed import Ranks, global_mean, rank_and_world
from engine.keys import Key
from engine.optimizer import decay_groups
from engine.predictions import read_predictions
from engine.schedules import ema_decay
from inference.errors import UserError, first_line, printable
from inference.model import Model, load_model
from kernels.sharded_softmax import gather_batch
from losses import clip_kl, cosine_distance, relational_kl, rkd_distance
from tasks import get_task

PROJECTED = {"match": cosine_distance, "clip_kl": clip_kl}  # terms of each sample by itself, through a projector
TERMS = (*PROJECTED, "relational", "rkd")                   # and of the pairs of a batch, at the embedding itself
KINDS = ("a FILE.onnx of this project, the output folder of a run, a file of predictions, open_clip:NAME:FILE, "
         "timm:NAME:FILE, or ema")

KEYS = {
    "teacher": Key("", f"of what else to learn: {KINDS} (the average of this run itself); several with commas between"),
    "teacher_term": Key("match", "match: 1 - cos; relational: KL of a batch's similarities; rkd: its distances; clip_kl: "
                                 "the DocClassifier reference's, which teaches nothing", choices=TERMS),
    "teacher_weight": Key(5.0, "of the teacher's term in the loss", least=0),
    "teacher_fade": Key(0.0, "the weight falls to 0 over this last part of the run", least=0, most=1),
    "teacher_ensemble": Key("joined", "several teachers: joined, their embeddings side by side, whose cosines are the means "
                                      "of theirs; or each, a term of its own with its part of the weight",
                            choices=("joined", "each")),
    "teacher_ema": Key(0.999, "decay per step of teacher=ema", least=0, below=1),
    "teacher_temperature": Key(0.05, "relational: of the teacher's similarities", above=0),
    "student_temperature": Key(0.1, "relational: of the student's similarities", above=0),
    "projector": Key(True, "match, clip_kl: the embedding meets the teacher's through a linear layer, which is not "
                           "published; false: directly, which takes a teacher of the same embedding_size"),
    "projector_lr": Key(1e-3, "AdamW, the projector; whatever the batch", least=0),
}


class Lesson:
    """The teachers of a run and what they add to its loss. `model`: the network with what only its teachers need.

    The share of a term is |its gradient| / |the margin softmax's|, both of the embeddings of the global batch.
    """

    def __init__(self, cfg, network: nn.Module, images: ImageFolders, ranks: Ranks):
        self.cfg, self.ranks = cfg, ranks
        names = [cfg.teacher] if Path(cfg.teacher).exists() else [name for name in cfg.teacher.split(",") if name]
        if not names or len(set(names)) < len(names):
            raise UserError(f"teacher={cfg.teacher}: names {'one twice' if names else 'none'}; give {KINDS}")
        average = copy.deepcopy(network) if "ema" in names else None
        self.teachers = [open_teacher(name, cfg, images, ranks, average) for name in names]
        widths = [teacher.width for teacher in self.teachers]
        if cfg.teacher_ensemble == "joined":
            widths = [sum(widths)]
        projects = cfg.teacher_term in PROJECTED
        if projects and not cfg.projector and (wrong := next((w for w in widths if w != cfg.embedding_size), None)):
            raise UserError(f"teacher={cfg.teacher}: its embeddings have {wrong} numbers, those of this run "
                            f"embedding_size={cfg.embedding_size}; use embedding_size={wrong}, or projector=true")
        self.names = [cfg.teacher_term + (f"-{number + 1}" if len(widths) > 1 else "") for number in range(len(widths))]
        self.model = Student(network, cfg.embedding_size, widths if projects and cfg.projector else [], average)
        self.notes = [f"teacher {name}: {teacher.note}" for name, teacher in zip(names, self.teachers)]
        self._watching, self._squares = False, {}

    def compatibility_keys(self) -> dict:
        keys = "teacher_term", "teacher_ensemble", "projector"
        return {**{key: self.cfg[key] for key in keys}, "teacher": [teacher.digest for teacher in self.teachers]}

    def param_groups(self) -> list[dict]:
        cfg, projectors = self.cfg, self.model.projectors
        groups = decay_groups(self.model.network.named_parameters(), cfg.lr, "sqrt", cfg.weight_decay)
        if len(projectors):
            groups += decay_groups(projectors.named_parameters(), cfg.projector_lr, "fixed", cfg.weight_decay, "projector")
        return groups

    def begin_step(self, step: int, total: int, shown: dict[str, float]) -> None:
        """shown: what the log shows of the step, to which a step that has a line in it adds its shares when it is done."""
        self.step, self._shown, self._squares = step, shown, {}
        self._watching = (step + 1) % self.cfg.log_every == 0 or step + 1 == total
        self.weight = self.cfg.teacher_weight
        if self.cfg.teacher_fade:
            self.weight *= min(1.0, (total - step) / (self.cfg.teacher_fade * total))
            shown["teacher_weight"] = self.weight

    def watched(self, name: str, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """`x`, embeddings `[B_local,D]`, for the term `name` alone. In a step that is logged its gradient is measured.
        weight `[E,D]`: x is the embeddings' projection `[B_local,E]` by it, and their gradient is what is measured."""
        if not self._watching:
            return x

        def seen(gradient: torch.Tensor) -> None:
            gradient = gradient.detach() if weight is None else gradient @ weight.detach().to(gradient.dtype)
            square = gradient.double().square().sum()
            self._squares[name] = self._squares[name] + square if name in self._squares else square
        # The class centers move in the one backward pass, so no term's gradient can be asked for by itself. Each gets the
        # embeddings as a tensor of its own, whose gradient is that term's.
        own = x.view_as(x)
        own.register_hook(seen)
        return own

    def terms(self, batch: dict, embeddings: torch.Tensor, projected: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """{name: weighted term} of a micro-batch: embeddings `[B_local,D]` of the student and their projections
        `[B_local,E]`, if there are any. Each is the mean over the samples that the teacher knows, of all ranks."""
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        weights = [layer.weight for layer in self.model.projectors] or [None] * len(self.names)
        found = {}
        for number, (name, (said, known)) in enumerate(zip(self.names, self._said(batch, dtype))):
            if self.cfg.teacher_term in PROJECTED:
                z = self.watched(name, projected[number] if projected else embeddings, weights[number])
                known = known.to(z.device, non_blocking=True)
                term = global_mean(PROJECTED[self.cfg.teacher_term](z.to(dtype), said, known), known)
            else:
                term = self._of_pairs(self.watched(name, embeddings).to(dtype), said, known, batch["id"])
            found[name] = self.weight / len(self.names) * term
        return found

    def _said(self, batch: dict, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(embeddings of length 1 `[B_local,E]` on the device, which of them are known, bool `[B_local]` on the host), for
        each term."""
        with torch.no_grad():
            said = [(F.normalize(vectors.to(self.ranks.device, dtype, non_blocking=True), dim=1), known)
                    for vectors, known in (teacher(batch) for teacher in self.teachers)]
        if self.cfg.teacher_ensemble == "each":
            return said
        vectors, known = zip(*said)
        return [(torch.cat(vectors, 1) / math.sqrt(len(said)), torch.stack(known).all(0))]

    def _of_pairs(self, embeddings: torch.Tensor, said: torch.Tensor, known: torch.Tensor, ids: list[str]) -> torch.Tensor:
        """The mean of a term over the pairs of the global batch, but for those of two views of one image: they are classes
        of their own to the margin softmax, so the teacher has nothing to say against it."""
        rank, world = rank_and_world()
        every, image = gather_batch(embeddings, torch.tensor([_number(name) for name in ids]), embeddings.shape[1], 1 << 62,
                                    rank, world)                                          # [B,D], [B] of all ranks
        said, known = gather_batch(said, known.long(), said.shape[1], 2, rank, world)     # [B,E], [B]
        pairs = (image[:, None] != image) & known.bool()[:, None] & known.bool()
        pairs = pairs.to(every.device, non_blocking=True)                                 # [B,B]
        if self.cfg.teacher_term == "rkd":
            values, counts = rkd_distance(every, said, pairs)
        else:
            values, counts = relational_kl(every, said, pairs, self.cfg.student_temperature, self.cfg.teacher_temperature)
        mean = values.sum() / counts.sum().clamp_min(1)
        # Each rank has the loss of the whole batch. The gathering adds up the gradients of all ranks, times their number.
        return mean.detach() + (mean - mean.detach()) / world

    def finish_step(self, skip: torch.Tensor) -> None:
        """After the optimizer's step: the average moves, and the shares of a logged step are said."""
        if self.model.average is not None:
            follow(self.model.average, self.model.network, ema_decay(self.step, self.cfg.teacher_ema), skip)
        if self._watching:
            squares = torch.stack([self._squares[name] for name in (self.cfg.margin, *self.names)])
            if self.ranks.world > 1:
                dist.all_reduce(squares)
            margin, *others = squares.sqrt().tolist()
            self._shown.update({f"share/{name}": size / margin if margin else math.nan
                                for name, size in zip(self.names, others)})


class Student(nn.Module):
    """An embedding network in training: images -> (embedding `[B,D]`, its projection `[B,E]` for each of `widths`).

    average: its own moving average, which is its teacher; a part of the model, so that checkpoints hold it. Mean teacher,
    Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780.
    """

    def __init__(self, network: nn.Module, dims: int, widths: list[int], average: nn.Module | None):
        super().__init__()
        self.network, self.average = network, average
        self.projectors = nn.ModuleList(nn.Linear(dims, width, bias=False) for width in widths)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedding = self.network(image)                                                   # [B,D]
        return embedding, *(projector(embedding) for projector in self.projectors)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float, skip: torch.Tensor) -> None:
    """All floating-point numbers of `average`, BatchNorm's statistics too, move towards those of `network` by a share of
    1 - decay; not at all if `skip`, a flag on the device, is true."""
    theirs, numbers = ([value for value in (*module.parameters(), *module.buffers()) if value.is_floating_point()]
                       for module in (average, network))
    change = torch._foreach_sub(numbers, theirs)
    torch._foreach_mul_(change, (~skip) * (1 - decay))
    torch._foreach_add_(theirs, change)


class Teacher(Protocol):
    """A batch -> (embeddings `[B,width]` of each sample's view as it is, which are known, bool `[B]` on the host)."""
    width: int
    digest: str     # of all that decides what it says: a run does not resume with another teacher
    note: str       # for the log

    def __call__(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]: ...


class Network:
    """A frozen network in PyTorch, on the run's device: float `[B,3,S,S]` in [0,1], RGB -> `[B,width]`."""

    def __init__(self, module: nn.Module, size: int, width: int, digest: str, cfg, device: torch.device):
        self.module = module.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.size, self.width, self.digest, self._bf16 = size, width, digest, cfg.precision == "bf16"
        self.note = f"{width} numbers of images of {size} x {size} pixels"
        self._view = Augment("none", cfg.seed)

    def __call__(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        image = self._view(batch["image"], batch["position"], batch["view"], self.size)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self._bf16):
            return self.module(image), torch.ones(len(image), dtype=torch.bool)


class Exported:
    """An ONNX file of this project, run as inference runs it: on a GPU where ONNX Runtime finds one."""

    def __init__(self, file: str, cfg, device: torch.device):
        self._model, self._view = _on_device(file, device), Augment("none", cfg.seed)
        _check_fit(file, self._model.fit, cfg.fit)
        self.width, self.digest = self._model.embedding_size, _digest(file)
        self.note = f"{self.width} numbers of images of {self._model.image_size} x {self._model.image_size} pixels"

    def __call__(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        image = self._view(batch["image"], batch["position"], batch["view"], self._model.image_size)
        pixels = (255 * image).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()  # [B,S,S,3]
        return torch.from_numpy(self._model.embed(pixels)), torch.ones(len(image), dtype=torch.bool)


class Cached:
    """A file of predictions, joined by sample id: row ID is the image ID as it is, row ID#3 its view 3. With an expansion
    the file needs a row for each view; a sample without a row has no teacher."""

    def __init__(self, file: str, images: ImageFolders):
        found = self._found = read_predictions(file)
        if found.kind != "embedding":
            raise UserError(f"teacher={file}: holds {found.kind}, which task=classification learns from; embeddings are "
                            "needed here (python -m tools.cache_teacher)")
        _check_fit(file, found.about.get("fit", images.fit), images.fit)
        ids = list(images.unique_ids())
        known = int(found.join(ids)[1].sum())
        if not known:
            raise UserError(printable(f"teacher={file}: knows none of the images in data; its ids are such as "
                                      f"{found.ids[0]!r}, theirs such as {ids[0]!r} (identity=content: by content)"))
        self.width, self.digest = found.values.shape[1], found.digest()
        self.note = f"{self.width} numbers, known of {known:,} of {len(ids):,} images"
        if any(root.expansion > 1 for root in images.roots):
            turned = int(found.join([f"{name}#1" for name in ids])[1].sum())
            self.note += f" as they are, of {turned:,} turned once"

    def __call__(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        return self._found.join([row_of(name, view) for name, view in zip(batch["id"], batch["view"].tolist())])


def row_of(name: str, view: int) -> str:
    """The id of a sample in a file of predictions: of image `name`, seen as `view`."""
    return f"{name}#{view}" if view else name


def open_teacher(name: str, cfg, images: ImageFolders, ranks: Ranks, average: nn.Module | None = None) -> Teacher:
    """The teacher that the key `teacher` names. average: what "ema" is. Raises UserError."""
    kind, _, rest = name.partition(":")
    if name == "ema":
        return Network(average, cfg.image_size, cfg.embedding_size, "ema", cfg, ranks.device)
    if kind in ("open_clip", "timm"):  # whose libraries would download weights; here they are always a file
        network, _, file = rest.partition(":")
        if not network or not file:
            raise UserError(f"teacher={name}: write {kind}:NAME:FILE; FILE holds weights of the network NAME")
        if not Path(file).is_file():
            raise UserError(f"teacher={name}: {file}: no such file; download the weights of {network} beforehand")
        if kind == "timm":
            return _of_timm(name, network, file, cfg, images.side, ranks.device)
        return _of_open_clip(name, network, file, cfg, ranks.device)
    path = Path(name)
    if path.is_dir():
        return _of_run(path, cfg, ranks.device)
    if not path.is_file():
        raise UserError(f"teacher={name}: no such file or folder; give {KINDS}")
    return Exported(name, cfg, ranks.device) if path.suffix == ".onnx" else Cached(name, images)


def _of_run(folder: Path, cfg, device: torch.device) -> Network:
    """The network that a run of this project published. Others may have made the folder, so all of it is checked."""
    if not (folder / "config.json").is_file() or not (folder / "model.pt").is_file():
        raise UserError(f"teacher={folder}: no config.json and model.pt, so not the output folder of a finished run")
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        task = get_task(values.get("task", "registration"))
        if "teacher_term" not in task.defaults:  # of KEYS, which the tasks of embeddings have
            raise UserError(f"task={values['task']}: it has no embeddings to learn from")
        theirs = EasyDict({key: of.checked(key, values.get(key, of.default)) for key, of in task.defaults.items()})
        network = task.restore(theirs, {})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise UserError(f"teacher={folder}: its network cannot be made ({first_line(error)})") from None
    load_weights(network, read_weights(folder / "model.pt"), folder / "model.pt")
    _check_fit(folder, theirs.fit, cfg.fit)
    return Network(network, theirs.image_size, network.width, _digest(folder / "model.pt"), cfg, device)


def _of_timm(name: str, network: str, file: str, cfg, side: int, device: torch.device) -> Network:
    """A whole timm network, pooled. It sees an image as it lies in memory, `side` x `side` pixels, unless it takes another
    size alone."""
    try:
        defaults = timm.get_pretrained_cfg(network)
        size = defaults.input_size[-1] if defaults and defaults.fixed_input_size else side
        module = get_model(EasyDict(network=network, head="timm", image_size=size, pretrained=file))
    except (UserError, RuntimeError) as error:  # RuntimeError: a tag that timm does not know
        raise UserError(printable(f"teacher={name}: {error}")) from None
    return Network(module, size, module.width, _digest(file), cfg, device)


class _Clip(nn.Module):
    """The image side of an open_clip model, with its preprocessing."""

    def __init__(self, visual: nn.Module, mean, std):
        super().__init__()
        self.visual, self.normalize = visual, Normalize(mean, std)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.visual(self.normalize(image))


def _of_open_clip(name: str, network: str, file: str, cfg, device: torch.device) -> Network:
    """The image features of open_clip's `network` with the weights in `file`."""
    try:
        import open_clip
    except ImportError:
        raise UserError(f"teacher={name}: needs open_clip; pip install open_clip_torch") from None
    known = open_clip.get_model_config(network) if network in open_clip.list_models() else None
    if known is None:
        raise UserError(f"teacher={name}: open_clip has no {network}; open_clip.list_models() names what it has")
    if "hf_model_name" in known.get("text_cfg", {}):
        raise UserError(f"teacher={name}: the text network of {network} would be downloaded; choose another")
    try:
        # An absolute path: a bare name could be that of weights which open_clip knows, and downloads.
        clip = open_clip.create_model(network, pretrained=str(Path(file).resolve()), weights_only=True)
        size = clip.visual.image_size
        size = size[0] if isinstance(size, (tuple, list)) else size
        # A file does not say what mean and std its weights take, and open_clip then takes OpenAI's, which are wrong for
        # SigLIP. All weights that it knows of a network agree, but for ViT-L-14, most of whose take OpenAI's.
        tags = [open_clip.get_pretrained_cfg(network, tag) for tag in open_clip.list_pretrained_tags_by_model(network)]
        colors = {(tuple(tag["mean"]), tuple(tag["std"])) for tag in tags}
        seen = clip.visual.preprocess_cfg
        mean, std = colors.pop() if len(colors) == 1 else (seen["mean"], seen["std"])
        module = _Clip(clip.visual.eval(), mean, std)
        with torch.no_grad():
            width = module(torch.zeros(1, 3, size, size)).shape[1]
    except Exception as error:  # of unpickling, of tensors that do not fit, of networks whose features are no [B,E]
        raise UserError(f"teacher={name}: not weights of {network} ({first_line(error)})") from None
    return Network(module, size, width, _digest(file), cfg, device)


def _on_device(file: str, device: torch.device) -> Model:
    if device.type == "cuda":
        with contextlib.suppress(UserError):  # ONNX Runtime without CUDA: slower there, and the same numbers
            return load_model(file, "cuda")
    return load_model(file, threads=torch.get_num_threads())


def _check_fit(name, theirs: str, ours: str) -> None:
    if theirs != ours:
        raise UserError(printable(f"teacher={name}: takes images of fit={theirs}, this run makes them of fit={ours}"))


def _digest(file) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _number(name: str) -> int:
    """A number of 62 bits for an image's id, by which ranks tell images apart."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 2
