"""As configs/ads_b4, another network: Swin-B, 384 pixels."""
from configs.ads_b4 import *  # noqa: F403

network = "swin_base_patch4_window12_384.ms_in22k_ft_in1k"
image_size = 384
