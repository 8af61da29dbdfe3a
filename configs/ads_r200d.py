"""ResNet-200-D, 384 pixels: an image classifier of the advert contest. For GPUs; weights from the hub.

    torchrun --nproc_per_node=8 train_v2.py configs/ads_r200d data=DIR split=SPLIT.csv fold=0

The stated settings of that system, with folds; its rate of 1e-3 is for a batch of 64, whatever the number of GPUs.
"""
task = "classification"
network = "resnet200d.ra2_in1k"
pretrained = True
head = "timm"
image_size = 384
fit = "squash"
augment = "natural"
dropout = 0.3
mixup = 0.4
label_smoothing = 0.1
batch_size = 64
epochs = 30
lr = 1e-3
lr_rule = "fixed"
weight_decay = 2e-5
schedule = "onecycle"
warmup = 0.3
swa = 0.25
