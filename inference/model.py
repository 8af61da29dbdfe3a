"""An exported model on ONNX Runtime, with the preprocessing it was exported for. No torch."""
import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnxruntime

from .errors import UserError, first_line
from .image import FITS, MAX_INPUT, ImageError, default_threads, fit_square, load_image, map_ahead

DEFAULT_MODEL = Path(__file__).resolve().parent / "models" / "docmetric.onnx"  # the shipped one
METADATA_KEY = "docmetric"
FORMAT = 1
AGAIN = "export it again with onnx_export.py"
MAX_BYTES = 2 << 30  # no ONNX file can be larger
MAX_METADATA = 128 << 20  # characters: with a tokenizer of 250,000 words in all scripts they are some 40 million
# What the models of all other tasks lack, by the task that is wanted, and where a model of a task is of use.
USELESS = {"registration": "has no embeddings to compare", "finder": "finds no documents", "reading": "reads no lines",
           "classification": "has no classes of images", "text_classification": "has no classes of texts"}
PROGRAMS = {"registration": "inference/classify.py --model", "finder": "inference/classify.py --finder",
            "reading": "inference/read.py --model", "classification": "inference/classify.py --classifier",
            "text_classification": "inference/classify.py --classifier"}
TABLES = {"upright": "thresholds", "any": "thresholds_any"}  # of the metadata, by how the documents may lie
TURNS = 4  # quarter turns that a document of orientation "any" may have
PART = {"cpu": 16, "cuda": 64}  # images per run; on a CPU more no longer fit the cache: each then takes longer


class Part(NamedTuple):
    """Some of the images that `Model.stream` was given, in order: of n resized images their `positions` in the sources (one
    source may give several), their `images` (uint8 RGB `[n, S, S, 3]`) and `features` (float32 `[n, D]`); {position: reason}
    of the sources that cannot be used; {position: note} as `views` gave it.
    """
    positions: list[int]
    images: np.ndarray
    features: np.ndarray
    reasons: dict[int, str]
    notes: dict[int, Any] = {}


class Model:
    """`embed(prepare(image)[None])` is all that classification needs of a network; `stream` does it for many at once.

    `image_size` S and `embedding_size` D are ints; `fit` says how an image becomes a square (`fit_square`); `margin` is the
    lead over the second best type, in scores, that a name takes (0: none); `metadata` is the dict that `onnx_export.py` put
    into the file; `threads` is how many work on many images. Every method may be called from several threads; `embed` and
    `stream` raise UserError, naming the file at `path`, where the network does not run or gives no finite features.
    """

    def __init__(self, path, session, metadata: dict, device: str = "cpu", threads: int = 1):
        self.path = path
        self.session = session
        self.metadata = metadata
        self.device = device
        self.threads = threads
        self.image_size: int = metadata["image_size"]
        self.embedding_size: int = metadata["embedding_size"]
        self.fit: str = metadata.get("fit", "squash")
        self._thresholds = {way: {float(rate): entry["threshold"] for rate, entry in (metadata.get(table) or {}).items()}
                            for way, table in TABLES.items()}
        self.margin: float = metadata.get("margin") or 0.0
        self._idle: dict[int, list[_Bound]] = {}  # by their number of images; as many as ran at the same time

    def prepare(self, image) -> np.ndarray:
        """A path, or an array as `cv2.imread` returns it -> uint8 RGB `[S, S, 3]`. Raises ImageError."""
        return cv2.cvtColor(fit_square(load_image(image, self.image_size), self.image_size, self.fit), cv2.COLOR_BGR2RGB)

    def stream(self, sources: Sequence, views: Callable | None = None) -> Iterator[Part]:
        """Prepare and embed many paths or arrays: yields a `Part` at a time, in order, the next ones under way.

        views: source -> (resized images as `prepare` gives them, a note); it may raise ImageError. None: the whole image.
        Each thread decodes a part and runs the network on it, by itself: whatever the two cost, no core waits and
        none is fought over. Memory: two parts a thread, however many sources.
        """
        def work(start):
            positions, squares, reasons, notes = [], [], {}, {}
            for position in range(start, min(start + size, len(sources))):
                try:
                    made, note = views(sources[position]) if views else ([self.prepare(sources[position])], None)
                except ImageError as error:
                    reasons[position] = str(error)
                    continue
                notes[position] = note
                squares += made
                positions += [position] * len(made)
            stacked = np.empty((len(squares), self.image_size, self.image_size, 3), np.uint8)
            for row, image in enumerate(squares):
                stacked[row] = image
            features = np.empty((len(squares), self.embedding_size), np.float32)
            for row in range(0, len(squares), most):
                features[row:row + most] = self._run(stacked[row:row + most])
            return Part(positions, stacked, features, reasons, notes)

        # A few images are shared out as well: a part is no larger than an even share.
        most = PART[self.device]
        size = max(1, min(most, -(-len(sources) // self.threads)))
        return map_ahead(work, range(0, len(sources), size), ahead=2 * self.threads, threads=self.threads)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 RGB `[N, S, S, 3]` -> float32 `[N, D]`, L2-normalized."""
        if images.dtype != np.uint8 or images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(f"images are {images.dtype} {images.shape}, "
                             f"expected uint8 [N, {self.image_size}, {self.image_size}, 3]")
        size = PART[self.device]
        if 0 < len(images) <= size:
            return self._run(images)
        features = np.empty((len(images), self.embedding_size), np.float32)
        starts = range(0, len(images), size)
        runs = map_ahead(lambda start: self._run(images[start:start + size]), starts, ahead=2 * self.threads,
                         threads=self.threads)
        for start, part in zip(starts, runs):
            features[start:start + size] = part
        return features

    def _run(self, images):  # (n, S, S, 3) -> (n, D), n at most PART
        # CUDA prepares itself for each size it meets: a few sizes serve all, the rows beyond n hold whatever they held.
        count = len(images) if self.device == "cpu" else 1 << (len(images) - 1).bit_length()
        idle = self._idle.setdefault(count, [])
        try:
            bound = idle.pop()
        except IndexError:
            bound = None
        try:
            bound = bound or _Bound(self.session, count, self.image_size, self.device)
            features = bound.run(images)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise UserError(f"{self.path}: the model does not run ({first_line(error)}); {AGAIN}") from None
        if features.shape != (len(images), self.embedding_size) or not np.isfinite(features).all():
            raise UserError(f"{self.path}: its features are not {self.embedding_size} finite numbers an image; {AGAIN}")
        idle.append(bound)
        return features

    def threshold_at(self, fpr: float, orientation: str = "upright") -> float | None:
        """The score from which at most `fpr` of the pairs of different types passed when the model was evaluated:
        the table's nearest rate that is not above `fpr`; None when the model has no such entry.

        orientation: with "any", the score of a pair is the best of the four turns of its reference.
        """
        allowed = [rate for rate in self._thresholds[orientation] if rate <= fpr]
        return self._thresholds[orientation][max(allowed)] if allowed else None

    def lowest_rate(self, orientation: str = "upright") -> float | None:
        """The lowest false positive rate of pairs that the model has a threshold for; None without any."""
        return min(self._thresholds[orientation], default=None)


class _Bound:
    """Memory for `count` images, bound to a session's input once and used by every run: on a CPU the session reads what
    is written here, on a GPU a fixed piece of its memory takes a copy. For one thread at a time.
    """

    def __init__(self, session, count, size, device):
        self.session, self.device = session, device
        self.pixels = np.zeros((count, 3, size, size), np.float32)
        self.input = onnxruntime.OrtValue.ortvalue_from_numpy(self.pixels, device, 0)
        self.binding = session.io_binding()
        self.binding.bind_ortvalue_input("img", self.input)
        self.binding.bind_output("feats", "cpu")  # 1 KB an image: the copy back is nothing

    def run(self, images):
        """uint8 RGB `[n, S, S, 3]`, n at most `count` -> float32 `[n, D]`."""
        np.divide(images.transpose(0, 3, 1, 2), np.float32(255), out=self.pixels[:len(images)])  # in [0, 1]
        if self.device != "cpu":
            self.input.update_inplace(self.pixels)
        self.session.run_with_iobinding(self.binding)
        return self.binding.copy_outputs_to_cpu()[0][:len(images)]


def load_model(path, backend: str = "cpu", threads: int = 0) -> Model:
    """Load what `onnx_export.py` wrote. `backend` is "cpu" or "cuda"; `threads` work on many images at once, 0: one for
    each core, at most 16. Raises UserError for anything that is not such a model, and for "cuda" where CUDA does not work.
    """
    if threads < 0:
        raise UserError(f"threads {threads}: must be at least 1, or 0 for one each core")
    session = open_session(path, backend)
    model = Model(path, session, _checked_metadata(path, session), backend, threads or default_threads())
    features = model.embed(np.full((2, model.image_size, model.image_size, 3), 128, np.uint8))
    if not np.abs(np.linalg.norm(features, axis=1) - 1).max() < 1e-3:
        raise UserError(f"{path}: its features are not L2-normalized; {AGAIN}")
    return model


def open_session(path, backend: str = "cpu", batch: int | None = None) -> onnxruntime.InferenceSession:
    """An ONNX file as a session whose runs take one thread each. batch: of every run, where that is known: then no run
    computes shapes. Raises UserError."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors reach the user as one line, through the exception
    # One thread for a run, several runs at once. Networks this small gain nothing from more threads within one image
    # (lcnet_050, 2 cores: .31 ms with 1, .32 with 2; efficientnet_b0: 2.1, 2.4), and ONNX Runtime's own threads spin
    # while they wait, which is worse than nothing as soon as the cores have other work, such as decoding.
    options.intra_op_num_threads = 1
    if batch:
        options.add_free_dimension_override_by_name("batch", batch)  # as onnx_export.py calls it
    # A model is one ONNX file: the weights that it says are in another, anywhere on this machine, are not to be found.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.add_session_config_entry("session.load_model_format", "ONNX")
    content = _read(path)
    chatter = io.StringIO()  # what CUDA lacks is printed to stdout, which all threads of the process share
    with contextlib.redirect_stdout(chatter) if backend == "cuda" else contextlib.nullcontext():
        providers = _providers(backend)
        try:
            session = onnxruntime.InferenceSession(content, options, providers=providers)
        except Exception as error:
            raise UserError(f"{path}: ONNX Runtime cannot load it ({first_line(error)}); {AGAIN}") from None
    if backend not in session.get_providers()[0].lower():  # it falls back to the CPU by itself
        why = first_line(chatter.getvalue().strip() or "no usable device")
        raise UserError(f"backend cuda: CUDA does not start on this machine ({why}); use backend cpu")
    return session


def _read(path):
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such model file; make one with onnx_export.py")
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise UserError(f"{path}: larger than the {MAX_BYTES >> 30} GiB that an ONNX file can have; {AGAIN}")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def _providers(backend):
    if backend == "cpu":
        return ["CPUExecutionProvider"]
    if backend != "cuda":
        raise UserError(f"backend {backend}: unknown; use cpu or cuda")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UserError("backend cuda: this ONNX Runtime has no CUDA; install onnxruntime-gpu, or use backend cpu")
    onnxruntime.set_default_logger_severity(4)
    onnxruntime.preload_dlls()  # CUDA as pip packages bring it
    # The exhaustive search for algorithms, the default, takes seconds for each size of input.
    return [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}), "CPUExecutionProvider"]


def _about(session):
    """What the file says of itself: JSON of any form."""
    text = session.get_modelmeta().custom_metadata_map[METADATA_KEY]
    if len(text) > MAX_METADATA:
        raise ValueError(f"more than {MAX_METADATA:,} characters")
    return json.loads(text)


def task_of(session) -> str | None:
    """The task of an exported model, as the file says; None for a file of any other kind."""
    try:
        task = _about(session).get("task", "registration")
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError):  # of JSON of any other form
        return None
    return task if isinstance(task, str) else None


def read_metadata(path, session, task: str) -> dict:
    """What the file says about itself, checked as far as all tasks have it in common: `task`, `format`, and where the input
    is an image `image_size`, `fit`, and that input. Raises UserError."""
    try:
        metadata = _about(session)
        version, other = metadata["format"], metadata.get("task", "registration")
        if other != task:
            useful = f", or use this one with {PROGRAMS[other]}" if other in PROGRAMS else ""
            raise UserError(f"{path}: a model of task={first_line(str(other))}, which {USELESS[task]}; "
                            f"give one of task={task}{useful}")
        if version != FORMAT:
            raise UserError(f"{path}: its format is {first_line(str(version))}, this program reads {FORMAT}; {AGAIN}")
        if task == "text_classification":
            return metadata
        size = metadata["image_size"]
        inputs = [(port.name, port.type, [side if type(side) is int else None for side in port.shape[1:]])
                  for port in session.get_inputs()]
        shape = [1, size, None] if task == "reading" else [3, size, size]  # lines are gray and of any width
        ours = (type(size) is int and 1 <= size <= MAX_INPUT and metadata.get("fit", "squash") in FITS
                and inputs == [("img", "tensor(float)", shape)])
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError):  # of JSON of any other form
        ours = False
    if not ours:
        raise not_ours(path)
    return metadata


def not_ours(path) -> UserError:
    return UserError(f"{path}: not a model of this project; make one with onnx_export.py")


def _checked_metadata(path, session):
    """The metadata of a model with embeddings, if it says what `onnx_export.py` wrote and the network agrees."""
    metadata = read_metadata(path, session, "registration")
    try:
        width = metadata["embedding_size"]
        outputs = [(port.name, port.type, port.shape[1:]) for port in session.get_outputs()]
        ours = (type(width) is int and outputs == [("feats", "tensor(float)", [width])]
                and all(are_thresholds(metadata.get(table) or {}) for table in TABLES.values())
                and 0 <= (metadata.get("margin") or 0) <= 1)
    except (LookupError, ValueError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise not_ours(path)
    return metadata


def are_thresholds(table: dict) -> bool:
    """Whether a table {"1e-3": {"threshold": score, ...}} holds rates and scores. What is no table raises what it raises."""
    # A threshold a hair above 1 lets nothing pass: where images of different types are the same.
    return all(0 < float(rate) <= 1 and 0 <= entry["threshold"] < 1.01 for rate, entry in table.items())
