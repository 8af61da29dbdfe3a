"""An exported model on ONNX Runtime, with the preprocessing it was exported for. No torch."""
import contextlib
import io
import json
import os
from collections.abc import Sequence

import numpy as np
import onnxruntime

from inference.image import ImageError, UserError, as_bgr, load_image, resize

METADATA_KEY = "docmetric"
FORMAT = 1
CHUNK = 64  # images per run: enough to fill the cores, small enough for any memory


class Model:
    """`embed(prepare(image)[None])` is all that classification needs of a network.

    `image_size` S and `embedding_size` D are ints; `metadata` is the dict that `onnx_export.py` put into the file.
    """

    def __init__(self, session, metadata: dict):
        self.session = session
        self.metadata = metadata
        self.image_size: int = metadata["image_size"]
        self.embedding_size: int = metadata["embedding_size"]

    def prepare(self, image) -> np.ndarray:
        """A path, or an array as `cv2.imread` returns it -> uint8 RGB `[S, S, 3]`. Raises ImageError."""
        image = load_image(image) if isinstance(image, (str, os.PathLike)) else as_bgr(image)
        return resize(image, self.image_size)[:, :, ::-1]

    def prepare_chunks(self, sources: Sequence):
        """Prepare many paths or arrays, a chunk at a time: yields (positions in `sources`, their images as uint8 RGB
        `[n, S, S, 3]`, {position: reason} of those that cannot be used).
        """
        for start in range(0, len(sources), CHUNK):
            images, reasons = {}, {}
            for position in range(start, min(start + CHUNK, len(sources))):
                try:
                    images[position] = self.prepare(sources[position])
                except ImageError as error:
                    reasons[position] = str(error)
            stacked = np.empty((len(images), self.image_size, self.image_size, 3), np.uint8)
            for row, image in enumerate(images.values()):
                stacked[row] = image
            yield list(images), stacked, reasons

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 RGB `[N, S, S, 3]` -> float32 `[N, D]`, L2-normalised."""
        if images.dtype != np.uint8 or images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(f"images are {images.dtype} {images.shape}, "
                             f"expected uint8 [N, {self.image_size}, {self.image_size}, 3]")
        features = np.empty((len(images), self.embedding_size), np.float32)
        for start in range(0, len(images), CHUNK):
            chunk = images[start:start + CHUNK].transpose(0, 3, 1, 2)
            chunk = np.ascontiguousarray(chunk, np.float32) / np.float32(255)  # (n, 3, S, S) in [0, 1]
            features[start:start + CHUNK], = self.session.run(["feats"], {"img": chunk})
        return features

    def threshold_at(self, fpr: float) -> float | None:
        """The score from which at most `fpr` of the pairs of different types passed when the model was evaluated:
        the table's nearest rate that is not above `fpr`; None when the model has no such entry.
        """
        rates = {float(rate): entry["threshold"] for rate, entry in (self.metadata.get("thresholds") or {}).items()}
        allowed = [rate for rate in rates if rate <= fpr]
        return rates[max(allowed)] if allowed else None


def load_model(path, backend: str = "cpu", threads: int = 0) -> Model:
    """Load what `onnx_export.py` wrote. `backend` is "cpu" or "cuda"; `threads` 0 lets ONNX Runtime choose.

    Raises UserError for anything that is not such a model, and for "cuda" where CUDA does not work.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such model file; make one with onnx_export.py")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors reach the user as one line, through the exception
    options.intra_op_num_threads = threads
    chatter = io.StringIO()  # what CUDA lacks is printed to stdout
    with contextlib.redirect_stdout(chatter):
        providers = _providers(backend)
        try:
            session = onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise UserError(f"{path}: ONNX Runtime cannot load it ({_first_line(error)})") from None
    if session.get_providers()[0] != providers[0]:  # it falls back to the CPU by itself
        why = _first_line(chatter.getvalue()) or "no usable device"
        raise UserError(f"backend cuda: CUDA does not start on this machine ({why}); use backend cpu")
    model = Model(session, _checked_metadata(path, session))
    try:
        features = model.embed(np.full((2, model.image_size, model.image_size, 3), 128, np.uint8))
    except Exception as error:
        raise UserError(f"{path}: the model does not run ({_first_line(error)})") from None
    if not np.abs(np.linalg.norm(features, axis=1) - 1).max() < 1e-3:  # also refuses NaN
        raise UserError(f"{path}: its features are not L2-normalised; export it again with onnx_export.py")
    return model


def _providers(backend):
    if backend == "cpu":
        return ["CPUExecutionProvider"]
    if backend != "cuda":
        raise UserError(f"backend {backend}: unknown; use cpu or cuda")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UserError("backend cuda: this ONNX Runtime has no CUDA; install onnxruntime-gpu, or use backend cpu")
    onnxruntime.set_default_logger_severity(4)
    onnxruntime.preload_dlls()  # CUDA as pip packages bring it
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _checked_metadata(path, session):
    stranger = UserError(f"{path}: not a model of this project; make one with onnx_export.py")
    try:
        metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        version, size, width = (metadata[key] for key in ("format", "image_size", "embedding_size"))
    except (KeyError, ValueError, TypeError):
        raise stranger from None
    if version != FORMAT:
        raise UserError(f"{path}: its format is {version}, this program reads {FORMAT}; export it again")
    inputs = [(port.name, port.type, port.shape[1:]) for port in session.get_inputs()]
    outputs = [(port.name, port.type, port.shape[1:]) for port in session.get_outputs()]
    if inputs != [("img", "tensor(float)", [3, size, size])] or outputs != [("feats", "tensor(float)", [width])]:
        raise stranger
    return metadata


def _first_line(error):
    return str(error).strip().split("\n")[0]
