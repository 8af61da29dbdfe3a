"""One-shot recognition of signs of alphabets that were never trained on: Omniglot, 20-way, within an alphabet.

    python benchmarks/bench_omniglot.py --data OMNIGLOT [--folds 4] [--trials 200] [key=value ...]
    python benchmarks/bench_omniglot.py --quick                             # signs that it draws itself, a few steps

OMNIGLOT/<alphabet>/<character>/*.png, the drawings of a character in the order of the people who drew them
(https://github.com/brendenlake/omniglot). Cross-validation: the alphabets are shared out over the folds, and for each fold
configs/omniglot is trained on the others alone (further key=value settings go to that run). A trial is Lake et al.'s
(https://doi.org/10.1126/science.aab3050): 20 characters of one alphabet, one drawing of each by one person as reference, one
of each by another person as query; a query is named by the reference with the highest cosine. An alphabet with fewer than 20
characters is trained on, but not tested. Each drawing is embedded as the mean over 9 small affine changes of it.

error: the mean over the tested alphabets, with a 95 % interval over them (t distribution). In the last row `peer` is the
paper's conv net and `limit` its people, on ten other alphabets; that net learned from thirty.
"""
import math
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from side_by_side import Report, UserError, run_cli

from augment.geometry import warp
from configs import load_config, load_run
from dataset import load_resized
from engine.distributed import Ranks
from inference.image import list_images, load_image
from train_v2 import train

WAYS = 20
PEOPLE, CONV_NET = 0.045, 0.135
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # by the number of alphabets


def read_alphabets(folder) -> dict[str, dict[str, list[Path]]]:
    """{alphabet: {character: its drawings, by person}}."""
    alphabets = {}
    for name in list_images(folder):
        alphabet, character, _ = (name.split("/") + ["", ""])[:3]
        alphabets.setdefault(alphabet, {}).setdefault(character, []).append(Path(folder, name))
    if not any(len(characters) >= WAYS for characters in alphabets.values()) or len(alphabets) < 2:
        raise UserError(f"{folder}: needs two alphabets, and one with {WAYS} characters: "
                        f"{folder}/<alphabet>/<character>/*.png")
    return alphabets


def draw_signs(folder, alphabets=3, characters=WAYS, people=4, seed=0):
    """Signs of three strokes, each drawn by several people, for --quick."""
    rng = np.random.default_rng(seed)
    for alphabet in range(alphabets):
        for character in range(characters):
            strokes = rng.uniform(15, 90, (3, 4, 2))
            place = Path(folder, f"alphabet{alphabet}", f"character{character:02}")
            place.mkdir(parents=True)
            for person in range(people):
                image = np.full((105, 105, 3), 255, np.uint8)
                drawn = np.int32(strokes + rng.normal(0, 3, strokes.shape) + rng.normal(0, 4, 2))
                cv2.polylines(image, list(drawn), False, (0, 0, 0), 2)
                cv2.imwrite(str(place / f"{person:02}.png"), image)


def write_cropped(alphabets, folder) -> dict[str, dict[str, list[Path]]]:
    """The drawings, each cropped to its ink with a margin, in `folder`/<alphabet>-<character>; where it stands on the sheet
    says nothing. Returns them as `alphabets`."""
    written = {}
    for alphabet, characters in alphabets.items():
        for character, drawings in characters.items():
            place = Path(folder, f"{alphabet}-{character}")
            place.mkdir(parents=True)
            for drawing in drawings:
                image = load_image(drawing)
                rows, columns = (image.max(2) < 128).nonzero()
                if len(rows):
                    margin = max(2, round(0.1 * max(np.ptp(rows), np.ptp(columns))))
                    image = cv2.copyMakeBorder(image[rows.min():rows.max() + 1, columns.min():columns.max() + 1],
                                               *[margin] * 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
                cv2.imwrite(str(place / f"{drawing.stem}.png"), image)
                written.setdefault(alphabet, {}).setdefault(character, []).append(place / f"{drawing.stem}.png")
    return written


def changes() -> torch.Tensor:
    """`[9,3,3]`: as it is; turned, sheared, wider and narrower, higher and lower, by a little each way."""
    matrices = []
    for turn, shear, wide, high in ((0, 0, 1, 1), (8, 0, 1, 1), (-8, 0, 1, 1), (0, .12, 1, 1), (0, -.12, 1, 1),
                                    (0, 0, 1.12, 1), (0, 0, .9, 1), (0, 0, 1, 1.12), (0, 0, 1, .9)):
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        matrices.append([[wide * cos, wide * (shear - sin), 0], [high * sin, high * cos, 0], [0, 0, 1]])
    return torch.tensor(matrices)


@torch.inference_mode()
def embed(network, files, size, fit) -> torch.Tensor:
    """`[N,D]` of length 1."""
    found, matrices = [], changes()
    for start in range(0, len(files), 32):
        pixels = np.stack([load_resized(file, size + size // 4, fit) for file in files[start:start + 32]])
        image = torch.from_numpy(pixels).float() / 255
        seen = torch.cat([warp(image, matrix.expand(len(image), 3, 3), size=size) for matrix in matrices])
        parts = torch.nn.functional.normalize(network(seen), dim=1).view(len(matrices), len(image), -1)
        found.append(torch.nn.functional.normalize(parts.mean(0), dim=1))
    return torch.cat(found)


def trial_errors(features: torch.Tensor, trials: int) -> np.ndarray:
    """float `[trials]`: of an alphabet, features `[characters, people, D]`. The same trials for any features."""
    characters, people, _ = features.shape
    rng, errors = np.random.default_rng(0), np.empty(trials)
    for trial in range(trials):
        chosen = torch.from_numpy(rng.permutation(characters)[:WAYS])
        one, other = rng.permutation(people)[:2]
        cosine = features[chosen, other] @ features[chosen, one].T                    # [20 queries, 20 references]
        errors[trial] = (cosine.argmax(1) != torch.arange(WAYS)).double().mean()
    return errors


def test(network, characters, size, fit, trials) -> tuple[float, float]:
    """Mean error over the trials of an alphabet, of the network and of its pixels, 16 x 16."""
    people = min(map(len, characters))
    files = [file for drawings in characters for file in drawings[:people]]
    pixels = torch.stack([torch.from_numpy(load_resized(file, 16).mean(0)).flatten().float() for file in files])
    pixels = torch.nn.functional.normalize(pixels - pixels.mean(1, keepdim=True), dim=1)
    return tuple(trial_errors(features.view(len(characters), people, -1), trials).mean()
                 for features in (embed(network, files, size, fit), pixels))


def train_without(held_out, alphabets, place, settings):
    """(network, config) of a run over all alphabets but `held_out`."""
    data = Path(place, "without-" + "-".join(held_out))
    data.mkdir()
    for name in alphabets.keys() - set(held_out):
        for drawings in alphabets[name].values():
            (data / drawings[0].parent.name).symlink_to(drawings[0].parent)
    cfg = load_config("omniglot", [f"data={data}:8:labelled", f"output={data}-run", f"cache={place}/cache", *settings])
    train(cfg, Ranks(0, 1, torch.device("cpu")))
    return load_run(cfg.output)


def main():
    report = Report(
        __doc__, ("settings", {"nargs": "*", "metavar": "key=value", "help": "of configs/omniglot"}),
        ("--data", {"metavar": "OMNIGLOT", "help": "folder of alphabets (--quick: draws its own)"}),
        ("--folds", {"type": int, "default": 4, "help": "runs, each without its share of the alphabets"}),
        ("--only", {"type": int, "metavar": "FOLD", "help": "one fold alone"}),
        ("--trials", {"type": int, "default": 200, "help": "for each alphabet"}))
    args = report.args
    if not args.data and not report.quick:
        raise UserError("no --data OMNIGLOT; get https://github.com/brendenlake/omniglot, or give --quick")
    settings = [*(["max_steps=4", "batch_size=32"] if report.quick else []), "log_every=200", *args.settings]
    errors, raw = [], []
    with tempfile.TemporaryDirectory() as place:
        if not args.data:
            draw_signs(f"{place}/drawn")
        alphabets = write_cropped(read_alphabets(args.data or f"{place}/drawn"), f"{place}/signs")
        for fold in range(args.folds) if args.only is None else [args.only]:
            held_out = sorted(alphabets)[fold::args.folds]
            tested = [name for name in held_out if len(alphabets[name]) >= WAYS]
            if not tested:
                continue
            network, cfg = train_without(held_out, alphabets, place, settings)
            for name in tested:
                characters = list(alphabets[name].values())
                error, of_pixels = test(network, characters, cfg.image_size, cfg.fit, args.trials)
                errors.append(error)
                raw.append(of_pixels)
                report.add(f"{name}, {len(characters)} characters: error, pixels' error", error, of_pixels, 0.0, "share")
    mean, count = np.mean(errors), len(errors)
    report.add(f"{WAYS}-way one-shot error, {count} alphabets; conv net, people", mean, CONV_NET, PEOPLE, "share")
    if count in T_95:
        half = T_95[count] * np.std(errors, ddof=1) / math.sqrt(count)
        report.say(f"95 % interval over the alphabets: {mean - half:.4f} to {mean + half:.4f}; of 16 x 16 pixels "
                   f"{np.mean(raw):.4f}")
    report.end()


if __name__ == "__main__":
    run_cli(main)
