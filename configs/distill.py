"""A small network from scratch that also learns what documents look like to the shipped model, its teacher. 2.30 MB.

Any teacher does: a larger run of one's own, CLIP, several at once (tasks/teachers.py). One class an image, low scale and
small margin as in configs/demo, since the teacher is worth most in short runs; 96 x 96 pixels. benchmarks/bench_teachers.py
says what it brings.
"""
from configs.lcnet_strong import *  # noqa: F403

pretrained = False
network = "mobilenetv3_small_050"
image_size = 96
layout = 8
expansion = 1
s = 16.0
m = 0.2
batch_size = 128
lr = 1e-2
margin_warmup = 0.3
sample_rate = 0.25
teacher = "inference/models/docmetric.onnx"
teacher_term = "match"
teacher_weight = 20.0
