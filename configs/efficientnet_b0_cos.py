"""efficientnet_b0-ln-cos: flatten 320 x 4 x 4 = 5,120 -> 256. 19.89 MB."""
from configs.lcnet_cos import *  # noqa: F403

network = "efficientnet_b0"
