"""ln-cos-gap: global average pooling, 256 -> 256. 1.61 MB."""
from configs.lcnet_cos import *  # noqa: F403

head = "gap"
