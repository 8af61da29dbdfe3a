"""As configs/ads_b4, another network: ResNet-200-D, 384 pixels."""
from configs.ads_b4 import *  # noqa: F403

network = "resnet200d.ra2_in1k"
image_size = 384
