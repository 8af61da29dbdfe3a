"""Signs drawn by hand, one-shot (https://github.com/brendenlake/omniglot): a small network from scratch, 48 x 48 pixels.

    python train_v2.py configs/omniglot data=DIR:8:labelled

Each turned and mirrored sign is a class of its own: 180 signs of 20 drawings x 8 = 1,440 classes, 28,800 samples; 1,800
steps of 128 = 230,400 samples. `python benchmarks/bench_omniglot.py` trains it on some alphabets and tests it on the others.
"""
from configs.glyphs import *  # noqa: F403

network = "plain_conv_wide"
expansion = 8
image_size = 48
embedding_size = 256
augment = "drawings"
sampler = "permutation"
batch_size = 128
max_steps = 1800
lr = 8e-3
fit = "squash"
centres_optimizer = "adamw"
centres_lr = 4e-3
s = 16.0
m = 0.1
margin_warmup = 0.0
ema = 0.99
