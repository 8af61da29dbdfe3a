"""The keys of every run, whatever its task. A task declares its own keys beside these (tasks/).

A config file holds what differs from the defaults; `key=value` on the command line wins over both.
Learning rates of AdamW are stated for a global batch of 512 and follow it with the square root
(https://arxiv.org/abs/2205.10287); a task may state another rule for its own parameters.
"""
from engine.keys import Key

task = Key("registration", "what is learned: a file of tasks/")

# optimization
batch_size = Key(512, "global: samples in one optimizer step over all ranks", least=1)
accumulate = Key(1, "micro-batches in one optimizer step", least=1)
epochs = Key(20, "passes over the data", least=1)
max_steps = Key(0, "end after this many steps; 0: after the epochs", least=0)
lr = Key(1e-3, "AdamW, network, for a batch of 512", least=0)
weight_decay = Key(1e-3, "of weight matrices and kernels; norms and biases have none", least=0)
schedule = Key("polynomial", "of the learning rate; polynomial has power 1; onecycle rises and falls as half a cosine each",
               choices=("polynomial", "cosine", "constant", "onecycle"))
warmup = Key(0.1, "fraction of the run over which the learning rate rises", least=0, most=1)
clip = Key(5.0, "gradient norm of the network; 0: off", least=0)
ema = Key(0.0, "decay per step, such as 0.999, of a moving average of the network (BatchNorm's statistics too), less in the "
               "first steps; the average is evaluated and saved as model.pt; 0: off", least=0, below=1)
swa = Key(0.0, "share of the run at whose end the weights of all steps are averaged evenly, instead of ema; 0: off", least=0,
          most=1)

# computation
device = Key("auto", "where to compute", choices=("auto", "cpu", "cuda"))
precision = Key("fp32", "bf16: autocast of the network", choices=("fp32", "bf16"))
float32_matmul_precision = Key("highest", "high is TF32 on GPUs: cosines to about 1e-3",
                               choices=("highest", "high", "medium"))
compile = Key(False, "torch.compile of the network")
seed = Key(0, "of every random number of the run")

# the run's folder
output = Key("", "folder of the run; default: work_dirs/<name of the config>")
resume = Key("false", "false: start anew; auto: resume from the newest whole checkpoint of output; or a checkpoint folder",
             also=(bool,))
log_every = Key(20, "steps between two lines of the log", least=1)
save_every = Key(1000, "steps between two checkpoints; 0: by the clock and at the end alone", least=0)
save_minutes = Key(30.0, "and whenever so many minutes have passed without a checkpoint; 0: never", least=0)
keep_checkpoints = Key(2, "the newest ones are kept, and the best", least=1)
eval_every = Key(0, "steps between two evaluations; 0: at the end alone", least=0)
max_skipped = Key(100, "the run ends after so many steps in a row without a finite loss; 0: never", least=0)
stall_minutes = Key(10.0, "the run also ends when a step takes longer than this, with a line that names the rank; 0: never",
                    least=0)
