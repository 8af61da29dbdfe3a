"""ln-cos: lcnet_050, flatten 256 x 4 x 4 = 4,096 -> 256, CosFace. 5.54 MB.

The reference's recipe: AdamW on network and class centers alike, a 0.3 sample of the centers. Unlike its code, norms do not
decay, centers that are not sampled do not move, and the network sees RGB with ImageNet's statistics.
16,256 images x 24 = 390,144 classes; 131 epochs x 390,144 = 51.1 M images, 99,822 steps of 512.
"""
pretrained = True
sample_rate = 0.3
epochs = 131
centres_optimizer = "adamw"
centres_lr = 1e-3
centres_weight_decay = 1e-3
