"""ln-cos-squeeze: 1x1 conv 256 -> 64, flatten 64 x 4 x 4 = 1,024 -> 256. 2.46 MB."""
from configs.lcnet_cos import *  # noqa: F403

head = "squeeze"
