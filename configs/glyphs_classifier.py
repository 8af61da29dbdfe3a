"""EffOCR's classifier mode: the network of configs/glyphs under a cross entropy. It needs no references, and knows the
classes alone that it was trained on.

    python train_v2.py configs/glyphs_classifier data=RENDERS:1:labelled,CROPS:1:labelled eval_data=OTHER_CROPS
"""
task = "classification"
network = "plain_conv"
pretrained = False
image_size = 48
fit = "pad"
head = "flatten"
norm = "bn"
embedding_size = 128
sampler = "per_class"
augment = "glyphs"
batch_size = 128
max_steps = 2000
lr = 4e-3
weight_decay = 5e-4
schedule = "cosine"
warmup = 0.03
