"""The shipped model's recipe: lcnet_strong's network and augmentation over real images, synthetic captures of them, and
synthetic documents (see tools/release.sh); a scale and margin that learn fast, a quarter of the class centers in a step.
2.47 MB.

39,392 classes, 89,784 views of 29,598 images; 7,500 steps of 256 = 1.9 M, each view 21 times.
"""
from configs.lcnet_strong import *  # noqa: F403

expansion = 8
s = 32.0
m = 0.35
sample_rate = 0.25
batch_size = 256
max_steps = 7500
lr = 2.5e-3
warmup = 0.03
margin_warmup = 0.1
compile = True
eval_every = 1000
save_every = 500
log_every = 100
