"""The shipped model's recipe: lcnet_strong's network, which also gets the image as 8 x 8 cells, fine-tuned from the one
before over real images, synthetic captures of them, and synthetic documents (tools/release.sh). Class centers begin at
their images, colors stay natural, and all centers take part in a step, since types that look alike are what is left to
learn. 2.66 MB.

68,861 classes, 164,583 images; 3,800 steps of 256 = 973,000 samples, each image six times. From scratch: more steps, and
centres_init=random sample_rate=0.25.
"""
from configs.lcnet_strong import *  # noqa: F403

layout = 8
augment = "natural"
expansion = 1
s = 32.0
m = 0.35
centres_init = "images"
batch_size = 256
max_steps = 3800
lr = 2.5e-3
warmup = 0.03
margin_warmup = 0.05
ema = 0.999
compile = True
eval_every = 1000
save_every = 500
log_every = 100
