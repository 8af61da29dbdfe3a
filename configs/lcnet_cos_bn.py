"""bn-cos: lcnet_cos with BatchNorm in the head. 5.54 MB."""
from configs.lcnet_cos import *  # noqa: F403

norm = "bn"
