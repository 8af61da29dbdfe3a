"""EffOCR's recipe on the network of configs/glyphs: SupCon with a temperature of .1 over tight crops, four of a class.

    python train_v2.py configs/glyphs_supcon data=RENDERS:1:labelled,CROPS:1:labelled
    python train_v2.py configs/glyphs_supcon data=... sampler=hard_negatives look_alikes=EARLIER_RUN/look_alikes.txt
"""
from configs.glyphs import *  # noqa: F403

loss = "supcon"
crop = "tight"
