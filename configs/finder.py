"""Finds the documents in a photo: their four corners and a score. Images padded to 224 x 224, maps at strides 4 and 16.

    python -m synth --scenes DIR --number 20000 --documents FOLDER... --backgrounds FOLDER... --first-type 0
    python train_v2.py configs/finder data=DIR boxes=DIR/corners.json eval_data=DIR2 eval_boxes=DIR2/corners.json

With 20,000 scenes in 8 views (turned and mirrored): 1 epoch = 160,000 images, 5,000 steps of 32, an hour on one core. No
augmentation, since scenes are captures already and no scene is seen often; for a longer run, augment=strong.
"""
task = "finder"
network = "mobilenetv3_small_050"
pretrained = False
fit = "pad"
image_size = 224
strides = [4, 16]
width = 48
expansion = 8
augment = "none"
batch_size = 32
epochs = 1
lr = 2e-2
weight_decay = 1e-2
schedule = "cosine"
ema = 0.998
eval_every = 1000
