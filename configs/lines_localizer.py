"""EffOCR's localizer: characters and words of text lines, 64 pixels high, at strides 4 and 16. 0.4 M parameters.

    python -m ocr lines --out LINES --count 2500
    python -m ocr windows LINES --out SHEETS
    python train_v2.py configs/lines_localizer data=SHEETS/images boxes=SHEETS/coco.json

With 2,000 sheets of four pieces of lines: 10 epochs = 20,000 sheets, 1,250 steps of 16.
"""
task = "localizer"
network = "mobilenetv3_small_050"
pretrained = False
fit = "pad"
image_size = 256
line_height = 64
strides = [4, 16]
width = 48
augment = "none"
overlap = 0.3
batch_size = 16
epochs = 10
lr = 3e-2
weight_decay = 1e-2
schedule = "cosine"
ema = 0.99
