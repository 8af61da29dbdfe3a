"""Go on from the shipped reader with transcribed lines, which need no boxes: minutes on a laptop.

    python train_v2.py configs/read_tune lines=FOLDER      # FOLDER: images, and lines.tsv with the columns file and text
"""
from pathlib import Path as _Path

task = "reading"
pretrained = str(_Path(__file__).resolve().parent.parent / "inference" / "models" / "reader.pt")
batch_size = 16
max_steps = 250
lr = 4e-3
schedule = "cosine"
warmup = 0.1
ema = 0.99
precision = "bf16"
ctc_weight = 1.0
