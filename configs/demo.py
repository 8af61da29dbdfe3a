"""The embedded default: synthetic documents, labeled by type, on a CPU in minutes. 2.01 MB.

800 types x 1 = 800 classes; 50 epochs x 2,400 images = 120,000 images, 938 steps of 128. A low scale and a small margin
learn fastest in so short a run.
"""
data = ["work_dirs/demo/data/train:1:labelled"]
cache = "work_dirs/demo/cache"
pretrained = False
head = "squeeze"
norm = "lbn"
image_size = 96
augment = "strong"
s = 16.0
m = 0.2
batch_size = 128
epochs = 50
lr = 1e-2
margin_warmup = 0.4
