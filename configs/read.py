"""A reader of text lines from synthetic lines alone: characters by their embeddings, with boxes. 2.6 MB with --fp16.

    python -m ocr lines --out data/lines --count 40000
    python train_v2.py configs/read data=data/lines
"""
task = "reading"
batch_size = 32
epochs = 5
lr = 1e-2
schedule = "cosine"
warmup = 0.05
ema = 0.999
precision = "bf16"
save_minutes = 10.0
