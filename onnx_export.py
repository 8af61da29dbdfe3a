"""Export a trained run for inference: one file that carries all that recognition needs.

    python onnx_export.py OUTPUT_DIR        # OUTPUT_DIR/model.pt -> OUTPUT_DIR/model.onnx

Input `img` float32 [batch, 3, S, S], RGB in [0, 1]; output `feats` float32 [batch, D], L2-normalised. The metadata key
`docmetric` holds a JSON object: sizes, channel order, config, classes trained on, and the thresholds that
OUTPUT_DIR/eval.json (`python -m eval --json`) found, if it is there.
"""
import contextlib
import io
import json
import logging
import os
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F

from backbones import load_run
from eval.calibrate import threshold_table
from inference.cli import Parser
from inference.model import FORMAT, METADATA_KEY, are_thresholds, load_model
from runtime import UserError, first_line, run_cli

OPSET = 18
PARITY_BATCHES = 1, 3, 64
MIN_COSINE = 0.99999


def export(model: torch.nn.Module, path: Path, metadata: dict) -> float:
    """Write `model` (float RGB `[B, 3, S, S]` in [0, 1] -> `[B, D]`) and `metadata` to `path`, an ONNX file.

    Returns the lowest cosine between torch's features and the file's. Raises UserError, and leaves `path` as it was,
    when that is below MIN_COSINE, the features are not finite, or the file cannot be written. `model` ends up on the
    CPU, in float32 and eval mode.
    """
    network = _Normalised(model).cpu().float().eval()
    size = metadata["image_size"]
    with torch.inference_mode():
        if not network(torch.rand(1, 3, size, size)).isfinite().all():
            raise UserError(f"{path}: not written, the network's features are not finite; its training has diverged")
    proto = _to_onnx(network, size)
    proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(metadata))
    onnx.checker.check_model(proto, full_check=True)

    unchecked = path.with_name(path.name + ".unchecked")
    try:
        onnx.save(proto, unchecked)
        cosine = _parity(network, unchecked, size)
        if not cosine >= MIN_COSINE:
            raise UserError(f"{path}: not written, its features differ from torch's (cosine {cosine:.7f}, "
                            f"at least {MIN_COSINE} is needed)")
        os.replace(unchecked, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        unchecked.unlink(missing_ok=True)
    return cosine


def describe(output_dir: Path, cfg: dict) -> dict:
    """The metadata of a run: what inference needs to know, and what a person may want to."""
    run = _read_json(output_dir / "run.json")
    return {
        "format": FORMAT,
        "image_size": cfg["image_size"],
        "embedding_size": cfg["embedding_size"],
        "channel_order": "RGB",
        "range": [0, 1],
        "score": "(cosine + 1) / 2",
        "config": dict(cfg),
        "classes": run.get("num_classes") if isinstance(run, dict) else None,
        "thresholds": _threshold_table(output_dir / "eval.json"),
    }


class _Normalised(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, img):
        return F.normalize(self.model(img), dim=1)  # (B, D)


def _to_onnx(network, size):
    example = torch.rand(2, 3, size, size)  # a batch of 1 would be taken for a constant
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            program = torch.onnx.export(
                network, (example,), dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
                input_names=["img"], output_names=["feats"], dynamic_shapes={"img": {0: torch.export.Dim("batch")}})
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
    return program.model_proto


def _parity(network, path, size):
    """The lowest cosine between torch's features and those of the inference code, over some batches of noise."""
    generator = np.random.default_rng(0)
    exported, lowest = load_model(path), 1.0
    for batch in PARITY_BATCHES:
        images = generator.integers(0, 256, (batch, size, size, 3), np.uint8)
        with torch.inference_mode():
            expected = network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).numpy()  # (batch, D)
        lowest = min(lowest, float((expected * exported.embed(images)).sum(axis=1).min()))
    return lowest


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({first_line(error)}); write it again or remove it") from None


def _threshold_table(path):
    """{"1e-3": {"threshold": score, "tpr": rate}} without the rates that the evaluation had too few pairs for."""
    report = _read_json(path)
    if report is None:
        return None
    try:
        table = threshold_table(report)
        if not are_thresholds(table or {}):
            raise ValueError
        return table
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: not what python -m eval --json prints; write it again or remove it") from None


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="the run's output folder")
    output_dir = parser.parse_args().output_dir
    model, cfg = load_run(output_dir)
    path = output_dir / "model.onnx"
    cosine = export(model, path, describe(output_dir, cfg))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, lowest cosine with torch {cosine:.7f}")


if __name__ == "__main__":
    run_cli(main)
