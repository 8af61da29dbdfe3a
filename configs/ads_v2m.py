"""As configs/ads_b4, another network: EfficientNetV2-M, 512 pixels."""
from configs.ads_b4 import *  # noqa: F403

network = "tf_efficientnetv2_m.in21k_ft_in1k"
image_size = 512
