"""Squeeze on an ImageNet base: every image is one class, no expansion. 2.46 MB.

1,281,833 images x 1 = 1,281,833 classes; 40 epochs x 1,281,833 = 51.3 M images, 100,144 steps of 512.
"""
from configs.lcnet_cos import *  # noqa: F403

expansion = 1
epochs = 40
head = "squeeze"
