"""EffOCR's recognizer: crops of characters, embedded by a small network from scratch. 48 x 48 pixels, 1.3 MB.

    python -m ocr renders --out RENDERS --charset FILE --crop line
    python -m ocr crops LINES --out CROPS --crop line
    python train_v2.py configs/glyphs data=RENDERS:1:labelled,CROPS:1:labelled

PartialFC with CosFace's margin, four samples of a class side by side. EffOCR's own recipe: configs/glyphs_supcon.
2,000 steps of 128 = 256,000 crops, 3 minutes on one core.
"""
task = "glyphs"
network = "plain_conv"
pretrained = False
image_size = 48
head = "flatten"
norm = "bn"
embedding_size = 128
sampler = "per_class"
samples_per_class = 4
augment = "glyphs"
batch_size = 128
max_steps = 2000
lr = 4e-3
weight_decay = 5e-4
schedule = "cosine"
warmup = 0.03
s = 24.0
m = 0.25
margin_warmup = 0.25
