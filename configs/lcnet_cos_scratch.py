"""ln-cos from scratch: lcnet_cos without pretrained weights. 5.54 MB."""
from configs.lcnet_cos import *  # noqa: F403

pretrained = False
