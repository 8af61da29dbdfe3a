"""Export what a run published for inference: one ONNX file that carries all that inference needs.

    python onnx_export.py OUTPUT_DIR                                # OUTPUT_DIR/model.pt -> OUTPUT_DIR/model.onnx
    python onnx_export.py OUTPUT_DIR --fp16                         # weights stored in 16 bits: half the file
    python onnx_export.py OUTPUT_DIR --int8 [--calibration DIR]     # large layers in 8 bits: a third of the file

Input `img` float32 [batch, 3, S, S], RGB in [0, 1], or what the run's task states; outputs as the task states them: `feats`
float32 [batch, D], L2-normalized, for registration. The metadata key `docmetric` holds a JSON object: task, sizes, channel
order, precision, config, and what the task adds: for registration the number of classes, and the thresholds that
OUTPUT_DIR/eval.json (`python -m eval --json`) found, if it is there. int8 takes the range of its numbers from images that
the run was trained on, or those below DIR, and measures its thresholds anew where the evaluation's images are.
"""
import inference  # noqa: F401 - before ONNX Runtime, whose reports it turns off

# isort: split
import contextlib
import io
import json
import logging
import re
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from backbones.quantize import half_weights, to_int8
from backbones.streamline import streamlined
from configs import load_run, read_info
from dataset import parse_root
from eval import evaluate_folder
from eval.calibrate import threshold_table
from inference.cli import Parser, run_cli
from inference.errors import UserError, first_line, printable
from inference.files import replacing
from inference.image import list_images
from inference.model import FORMAT, METADATA_KEY, load_model
from tasks import Export, get_task

OPSET = 18
PARITY_BATCHES = 1, 3, 64
MIN_COSINE = 0.99999
MIN_INT8_COSINE = 0.99  # the mean over images; single odd ones may lie far lower
INT8_IMAGES = 400  # images: three of four to calibrate, the fourth to see how near the features are
MIN_IMAGES = 20


def export(item: Export, path: Path, metadata: dict) -> float:
    """Write `item` and `metadata` to `path`, an ONNX file. With `metadata["precision"]` "fp16" its weights are stored in 16
    bits; the arithmetic, and the limit below, stay.

    Returns the lowest cosine between torch's outputs for a sample and the file's. Raises UserError, and leaves `path` as it
    was, when that is below MIN_COSINE, an output is not finite, or the file cannot be written. `item.module` ends up on the
    CPU, in float32 and eval mode.
    """
    network = item.module.cpu().float().eval()
    with torch.inference_mode():
        if not all(out.isfinite().all() for out in _outputs(network, item.example(1, np.random.default_rng(0)))):
            raise UserError(f"{path}: not written, the network's outputs are not finite; its training has diverged")
    proto = _to_onnx(network, item)
    if metadata.get("task") == "finder":  # the one network with GroupNorms that runs for every photo
        proto = streamlined(proto)
    if metadata["precision"] == "fp16":
        proto = half_weights(proto)
    with replacing(path) as unchecked:
        _save(proto, metadata, unchecked)
        cosine = _parity(network, unchecked, item)
        if not cosine >= MIN_COSINE:
            raise UserError(f"{path}: not written, its outputs differ from torch's (cosine {cosine:.7f}, "
                            f"at least {MIN_COSINE} is needed)")
        if item.outputs == ("feats",):
            load_model(unchecked)  # refuses what recognition could not use
    return cosine


def export_int8(exact: Path, path: Path, files: list[Path], evaluated_on: str | None) -> tuple[float, float]:
    """Write `exact`, an fp32 file of `export`, to `path` with its large layers in int8 and its other weights in 16 bits.

    files: images, of which INT8_IMAGES at even distances are used; those that cannot be read are skipped.
    evaluated_on: the folder that the thresholds are measured on anew. Where it cannot be used there are none in the file,
    since those of fp32 would not hold, and a warning says so.
    Returns mean and lowest cosine between fp32's features and the file's, on the images that did not calibrate it. Raises
    UserError, and leaves `path` as it was, when there are fewer than MIN_IMAGES images, the mean is below MIN_INT8_COSINE,
    or the file cannot be written.
    """
    model = load_model(exact)
    images, features, kept = sample(model, files)
    if len(images) < MIN_IMAGES:
        raise UserError(f"--int8: {len(images)} of {min(len(files), INT8_IMAGES)} images can be used to calibrate, at "
                        f"least {MIN_IMAGES} are needed ({INT8_IMAGES} are best); name a folder that has more with "
                        "--calibration DIR")
    metadata = {**model.metadata, "precision": "int8", "thresholds": None}
    with replacing(path) as unchecked:
        proto = half_weights(to_int8(onnx.load(exact), images[~kept]))
        _save(proto, metadata, unchecked)
        small = load_model(unchecked)
        cosines = (small.embed(images[kept]) * features[kept]).sum(axis=1)
        if not cosines.mean() >= MIN_INT8_COSINE:
            raise UserError(f"{path}: not written, int8 changes its features too much (mean cosine {cosines.mean():.4f}, at "
                            f"least {MIN_INT8_COSINE} is needed); export it with --fp16")
        try:
            if not evaluated_on:
                raise UserError("the run was not evaluated")
            report = evaluate_folder(small.embed, evaluated_on, small.image_size, baseline=False, fit=small.fit).as_dict()
            _save(proto, {**metadata, "thresholds": threshold_table(report)}, unchecked)
        except UserError as error:
            print(printable(f"warning: {path}: has no thresholds, since int8 moves them and they cannot be measured anew "
                            f"({error}); python -m eval --model {path} --calibrate DIR makes them from your own images"),
                  file=sys.stderr)
    return float(cosines.mean()), float(cosines.min())


def sample(model, files: list[Path], count: int = INT8_IMAGES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` of the files at even distances, as `model` sees them, without those that cannot be read: images uint8 RGB
    `[N, S, S, 3]`, features float32 `[N, D]`, and bool `[N]`, the fourth part that does not calibrate."""
    spread = np.linspace(0, len(files) - 1, min(len(files), count)).astype(int)
    parts = list(model.stream([files[i] for i in spread]))
    images, features = (np.concatenate([getattr(part, name) for part in parts] or [[]]) for name in ("images", "features"))
    return images, features, np.arange(len(images)) % 4 == 3


def calibration_images(cfg: dict, folder: str | None = None) -> list[Path]:
    """The files below `folder`; None: those that the run of `cfg` was trained on. Raises UserError naming a folder that
    cannot be read."""
    if folder is not None:
        return [Path(folder, name) for name in list_images(folder)]
    try:
        roots = [parse_root(text, 1).folder for text in cfg["data"]]
        return [root / name for root in roots for name in list_images(root)]
    except UserError as error:
        raise UserError(f"--int8: the run's own images: {error}; or name others with --calibration DIR") from None


def describe(item: Export, cfg: dict, precision: str = "fp32") -> dict:
    """The metadata of a run: what inference needs to know, and what a person may want to."""
    of_images = {
        "image_size": item.size,
        "fit": cfg.get("fit", "squash"),
        "channel_order": "RGB" if item.channels == 3 else "gray",
        "range": [0, 1],
    }
    return {
        "format": FORMAT,
        "task": cfg.get("task", "registration"),
        **(of_images if item.inputs is None else {}),
        "precision": precision,
        "config": without_places(cfg),
        **item.metadata,
    }


def without_places(cfg: dict) -> dict:
    """`cfg` with the last part alone of every path, whatever key holds it: where folders lie is no business of those who
    get the model."""
    def last(value):
        if isinstance(value, list):
            return [last(item) for item in value]
        return re.sub(r".*[/\\](?=.)", "", value, flags=re.S) if isinstance(value, str) else value

    return {key: value if key == "network" else last(value) for key, value in cfg.items()}  # timm's names have slashes


def _to_onnx(network, item):
    example = item.example(2, np.random.default_rng(0))  # a batch of 1 would be taken for a constant
    sides = {0: torch.export.Dim("batch")}
    if item.inputs:
        sides[1] = torch.export.Dim("length")
    elif item.variable_width:
        sides[3] = item.width_step * torch.export.Dim("steps", min=2)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            program = torch.onnx.export(
                _Named(network), tuple(map(torch.from_numpy, example.values())), dynamo=True, opset_version=OPSET,
                external_data=False, verbose=False, input_names=list(example), output_names=list(item.outputs),
                dynamic_shapes=((sides,) * len(example),))
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
    proto = program.model_proto
    for node in proto.graph.node:  # where in which source file each came from: of no use later, and of this machine
        del node.metadata_props[:]
    return proto


class _Named(nn.Module):
    """A network whose parameters have names that no output has: in ONNX they share one name space."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        return self.network(*inputs)


def _save(proto, metadata, path):
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(metadata))
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _parity(network, path, item):
    """The lowest cosine between an output of torch and of ONNX Runtime for a sample, over some batches of noise, each of
    another width or length where that may vary."""
    generator = np.random.default_rng(0)
    options, lowest = onnxruntime.SessionOptions(), 1.0
    options.log_severity_level = 4  # its errors reach the user as one line, through the exception
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise UserError(f"{path}: ONNX Runtime cannot load it ({first_line(error)})") from None
    for batch in PARITY_BATCHES:
        inputs = item.example(batch, generator)
        with torch.inference_mode():
            expected = _outputs(network, inputs)
        for one, other in zip(expected, session.run(None, inputs), strict=True):
            rows = batch if len(one) == batch else 1  # 1: a constant
            one, other = (out.reshape(rows, -1).astype(np.float64) for out in (one.numpy(), other))
            lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            lowest = min(lowest, float(((one * other).sum(axis=1) / np.maximum(lengths, 1e-30)).min()))
    return lowest


def _outputs(network, inputs):
    out = network(*map(torch.from_numpy, inputs.values()))
    return out if isinstance(out, tuple) else (out,)


def read_evaluation(output_dir: Path) -> dict | None:
    """The run's `eval.json`; None without one."""
    path = output_dir / "eval.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({first_line(error)}); write it again or remove it") from None


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="the run's output folder")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--fp16", action="store_true", help="store the weights in 16 bits: half the file, the same features")
    form.add_argument("--int8", action="store_true", help="compute the large layers in 8 bits: a third of the file")
    parser.add_argument("--calibration", metavar="DIR", help="images for --int8, instead of those the run was trained on")
    args = parser.parse_args()
    if args.calibration is not None and not args.int8:
        parser.error("--calibration: of use to --int8 alone")
    network, cfg = load_run(args.output_dir)
    path, evaluation = args.output_dir / "model.onnx", read_evaluation(args.output_dir)
    item = get_task(cfg.task).export(cfg, read_info(args.output_dir), network, evaluation)
    metadata = describe(item, cfg, "fp16" if args.fp16 else "fp32")
    if args.int8:
        if item.outputs != ("feats",):
            raise UserError(f"--int8: is for networks that embed, and this run's task is {cfg.task}; use --fp16")
        files = calibration_images(cfg, args.calibration)
        with tempfile.TemporaryDirectory() as folder:
            exact = Path(folder, path.name)
            export(item, exact, metadata)
            mean, lowest = export_int8(exact, path, files, (evaluation or {}).get("data"))
        found = f"cosine with fp32 on other images: mean {mean:.4f}, lowest {lowest:.4f}"
    else:
        found = f"lowest cosine with torch {export(item, path, metadata):.7f}"
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {found}")


if __name__ == "__main__":
    run_cli(main)
