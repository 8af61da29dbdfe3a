"""The text classifier of adverts that two cores train in seconds: hashed character n-grams of any script. 17 MB.

    python train_v2.py configs/ads_text_small split=S.csv texts=T.jsonl fold=0
    python train_v2.py configs/ads_text_small split=S.csv texts=T.jsonl teacher=FILE unlabeled=test teacher_on=unlabeled

With 640 texts: 30 epochs = 600 steps of 32.
"""
task = "text_classification"
text_network = "ngrams"
embedding_size = 64
dropout = 0.3
label_smoothing = 0.1
batch_size = 32
epochs = 30
lr = 1e-3
lr_rule = "fixed"
