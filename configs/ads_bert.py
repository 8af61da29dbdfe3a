"""A text classifier of the advert contest's ensemble: Chinese BERT-wwm, 256 tokens. For GPUs; weights from the hub.

    torchrun --nproc_per_node=8 train_v2.py configs/ads_bert split=SPLIT.csv texts=TEXTS.jsonl fold=0

The stated settings of that system, with folds; its rate of 2e-5 is for a batch of 64, whatever the number of GPUs. For texts
that are not Chinese: text_network=NAME of another encoder.
"""
task = "text_classification"
text_network = "hfl/chinese-bert-wwm"
pretrained = True
max_tokens = 256
line_dropout = 0.0
dropout = 0.3
label_smoothing = 0.1
batch_size = 64
epochs = 30
lr = 2e-5
lr_rule = "fixed"
weight_decay = 1e-2
warmup = 0.1
