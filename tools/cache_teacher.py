"""What a teacher sees in the images of a run, written once into a file that any number of runs can learn from.

    python -m tools.cache_teacher CONFIG FILE [key=value ...]
    python -m tools.cache_teacher configs/distill teacher.safetensors data=DIR teacher=work_dirs/larger image_size=128
    python train_v2.py configs/distill data=DIR teacher=teacher.safetensors

It takes data, expansion, fit and identity as the run does, and an image_size of its own, which should be the teacher's. The
file is one of engine/predictions.py: a row for each image and view (tasks/teachers.py, `row_of`).
"""
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from configs import load_config
from dataset import ImageFolders, list_roots
from engine.distributed import process_group
from engine.predictions import write_predictions
from inference.cli import run_cli
from inference.errors import UserError
from tasks.teachers import open_teacher, row_of

AT_ONCE = 64  # samples


@torch.no_grad()
def main():
    words = sys.argv[1:]
    if "-h" in words or "--help" in words:
        print(__doc__)
        return
    if len(words) < 2 or "=" in words[1]:
        raise UserError("usage: python -m tools.cache_teacher CONFIG FILE [key=value ...] (see --help)")
    cfg, file = load_config(words[0], words[2:]), Path(words[1])
    asked = cfg.get("teacher", "")
    if "fit" not in cfg:
        raise UserError(f"config {words[0]}: task={cfg.task} takes no images; give a config whose task does")
    if asked in ("", "ema"):
        raise UserError(f"teacher={asked}: give one network to ask; the average of a run exists in the run alone")
    with process_group(cfg.device) as ranks:
        images = ImageFolders(list_roots(cfg.data, cfg.expansion), cfg.image_size, cfg.cache, fit=cfg.fit,
                              identity=cfg.identity)
        images.unique_ids()  # else it could not be joined; said before the work
        teacher, rows = open_teacher(asked, cfg, images, ranks), {}
        print(f"teacher {asked}: {teacher.note}; {len(images):,} samples", file=sys.stderr)
        parts = torch.arange(len(images)).split(AT_ONCE)
        for samples in tqdm(parts, "asking", unit="batch", disable=None):
            image, view, _ = images.locate(samples)
            names = [images.ids[i] for i in image.tolist()]
            said, known = teacher({"image": images.pixels(image).to(ranks.device), "id": names, "view": view,
                                   "position": samples})
            rows |= {row_of(name, turned): vector for name, turned, vector, one
                     in zip(names, view.tolist(), said.float().cpu(), known.tolist()) if one}
    write_predictions(file, rows, "embedding", about={"teacher": Path(asked).name, "digest": teacher.digest,
                                                           "fit": cfg.fit})
    print(f"{file}: {len(rows):,} rows of {teacher.width} numbers", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main)
