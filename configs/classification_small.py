"""A small classifier, from scratch, of images in a folder for each class: two cores train it in minutes. 1.7 MB.

    python train_v2.py configs/classification_small data=DIR:1:labelled eval_data=DIR [teacher=FILE]

With 2,000 images: 20 epochs = 40,000 images, 625 steps of 64.
"""
task = "classification"
network = "mobilenetv3_small_050"
pretrained = False
image_size = 96
fit = "pad"
norm = "lbn"
dropout = 0.1
batch_size = 64
lr = 1e-2
eval_every = 200
