"""The embedded default: documents that synth/ makes, labelled by type, on a CPU in minutes."""
data = ["work_dirs/demo/data/train:1:labelled"]
eval_data = "work_dirs/demo/data/eval"
pretrained = False
cache = True
head = "squeeze"
norm = "lbn"
image_size = 96
augment = "strong"
batch_size = 128
epochs = 40
lr = 3e-3
margin_warmup = 0.4
num_workers = 1
