"""As configs/ads_b4, another network: ECA-NFNet-L1, 384 pixels."""
from configs.ads_b4 import *  # noqa: F403

network = "eca_nfnet_l1.ra2_in1k"
image_size = 384
