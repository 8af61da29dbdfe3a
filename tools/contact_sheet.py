"""A batch of a config as loaded, and beside each image what the network sees of it: view and augmentation.

    python -m tools.contact_sheet configs/lcnet_strong sheet.png data=scans
    python -m tools.contact_sheet configs/lcnet_cos sheet.png data=scans,posters:8 image_size=224 seed=1
"""
import cv2
import torch
import torch.nn.functional as F

from augment import Augment
from configs import load_config
from dataset import Batches, ImageFolders, list_roots
from inference.cli import Parser, run_cli
from inference.errors import UserError
from tasks.images import make_sampler

SAMPLES, COLUMNS = 32, 4


def main():
    parser = Parser(prog="python -m tools.contact_sheet", description=__doc__)
    parser.add_argument("config", metavar="CONFIG", help="the name or path of a config")
    parser.add_argument("file", metavar="FILE.png", help="image to write")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="keys that are to differ, such as data=FOLDER")
    args = parser.parse_args()
    if not args.file.endswith(".png"):
        parser.error(f"{args.file}: the image to write must end in .png")
    cfg = load_config(args.config, args.settings)
    images = ImageFolders(list_roots(cfg.data, cfg.expansion), cfg.image_size, cfg.cache, fit=cfg.fit)
    sampler = make_sampler(cfg, images)
    count = min(SAMPLES, cfg.batch_size, len(sampler))
    batch = Batches(images, max(1, count // sampler.block) * sampler.block, 1, cfg.seed, 0, 1, sampler)[0]
    loaded, seen = ((Augment(preset, cfg.seed)(batch["image"], batch["position"], batch["view"], cfg.image_size) * 255)
                    .round().byte() for preset in ("none", cfg.augment))
    pairs = torch.cat([loaded, seen], 3)                                                          # [n,3,S,2S]
    pairs = F.pad(pairs, (0,) * 7 + (-len(pairs) % COLUMNS,), value=255)                          # white where the row ends
    sheet = pairs.unflatten(0, (-1, COLUMNS)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # [rows*S,columns*2S,3]
    if not cv2.imwrite(args.file, sheet.numpy()[:, :, ::-1]):
        raise UserError(f"{args.file}: cannot be written; check the folder")
    shown = len(sampler.samples(batch["position"]).unique())  # a sampler by class repeats those of a small class
    print(f"{args.file}: {shown} of {len(images)} samples, as loaded and as {cfg.augment} makes them")


if __name__ == "__main__":
    run_cli(main)
