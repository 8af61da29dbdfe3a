"""Every key of a run with its default. A config file holds only what differs; `key=value` on the command line wins.

Sizes, margin and schedule are the DocClassifier reference's; the centres' SGD is what measured better.
Rates are stated for a global batch of 512 and follow it: centres on SGD linearly (https://arxiv.org/abs/1706.02677),
AdamW with the square root (https://arxiv.org/abs/2205.10287).
"""
# data
data = []                      # folders of images: FOLDER[:EXPANSION][:labelled]; every image is a class, or every folder
expansion = 24                 # classes made of an image: 1, 8 (quarter turns x flip) or 24 (x full, top half, bottom half)
image_size = 128               # input of the network, pixels
augment = "reference"          # none, reference or strong
cache = True                   # decode once, into ~/.cache/docmetric (${XDG_CACHE_HOME}); or a folder; or False: each time
                               # a new cache takes at most half of what is free on the disk; else: each time
num_workers = 2                # decoding processes for each rank, where there is no cache

# network
network = "lcnet_050"          # any timm model with features_only
pretrained = True              # True: timm's weights from the hub; a file; or False
head = "flatten"               # flatten, gap or squeeze
norm = "ln"                    # ln, bn or lbn (LayerNorm, then BatchNorm)
embedding_size = 256

# margin softmax
margin = "cosface"             # cosface, arcface, combined or softmax
m = 0.4                        # margin; for combined a list [m1, m2, m3]: cos(m1 * theta + m2) - m3
s = 64.0                       # scale
margin_warmup = 0.0            # the margin grows from 0 over this fraction of the run
interclass = 0.0               # leave out negatives whose cosine is above this; 0: off
sample_rate = 1.0              # share of the class centres that take part in a step

# optimisation
batch_size = 512               # global: images in one optimiser step over all ranks
accumulate = 1                 # micro-batches in one optimiser step
epochs = 20
max_steps = 0                  # end after this many steps; 0: after the epochs
lr = 1e-3                      # AdamW, network
weight_decay = 1e-3            # of weight matrices and kernels; norms and biases have none
schedule = "polynomial"        # polynomial (power 1), cosine or constant
warmup = 0.1                   # fraction of the run
clip = 5.0                     # gradient norm of the network; 0: off
ema = 0.0                      # decay per step, such as 0.999, of a moving average of the network (BatchNorm's statistics
                               # too), less in the first steps; the average is evaluated and saved as model.pt; 0: off
centres_optimizer = "sgd"      # sgd (momentum) or adamw
centres_lr = 0.1
centres_momentum = 0.9
centres_weight_decay = 0.0

# run
output = ""                    # default: work_dirs/<name of the config>
precision = "fp32"             # fp32 or bf16 (autocast of the network)
float32_matmul_precision = "highest"  # highest, high (TF32 on GPUs: cosines to about 1e-3) or medium
compile = False                # torch.compile of the network
device = "auto"                # auto, cpu or cuda
seed = 0
resume = "false"               # false: start anew; auto: go on from output's newest whole checkpoint; or a checkpoint folder
log_every = 20                 # steps
max_skipped = 100              # the run ends after so many steps in a row without a finite loss; 0: never
stall_minutes = 10.0           # and when a step stands still for so long, with a line that says on which rank; 0: never
save_every = 1000              # steps; 0: by the clock and at the end alone
save_minutes = 30.0            # and whenever this long went by without a checkpoint; 0: never
keep_checkpoints = 2           # the newest ones are kept, and the best
eval_data = ""                 # folder of types to evaluate on: TYPE/*.jpg (reference* is the gallery image)
eval_every = 0                 # steps; 0: at the end alone
