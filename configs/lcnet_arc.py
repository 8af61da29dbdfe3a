"""ln-arc: lcnet_cos with ArcFace. 5.54 MB."""
from configs.lcnet_cos import *  # noqa: F403

margin = "arcface"
