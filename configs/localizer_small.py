"""A detector of 0.32 M parameters: lcnet_050, heatmaps at strides 8 and 16, images padded to 256 x 256. 1.3 MB.

    python train_v2.py configs/localizer_small data=DIR boxes=COCO.json eval_data=DIR eval_boxes=COCO.json

For objects whose sides are at least 8 pixels there; for smaller ones, such as the characters of a page, strides=[4,16].
With 2,000 images: 60 epochs = 120,000 images, 3,750 steps of 32.
"""
task = "localizer"
pretrained = False
fit = "pad"
image_size = 256
batch_size = 32
epochs = 60
lr = 2e-2
weight_decay = 1e-2
ema = 0.99
eval_every = 500
