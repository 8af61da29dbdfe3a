"""LBN squeeze: LayerNorm followed by BatchNorm, the form the reference released. 2.47 MB."""
from configs.lcnet_cos import *  # noqa: F403

head = "squeeze"
norm = "lbn"
