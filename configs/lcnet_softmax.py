"""ln-softmax: lcnet_cos without a margin. 5.54 MB."""
from configs.lcnet_cos import *  # noqa: F403

margin = "softmax"
m = 0.0
