"""f128-r96-ln-cos: 96 px, flatten 256 x 3 x 3 = 2,304 -> 128. 2.33 MB."""
from configs.lcnet_cos import *  # noqa: F403

embedding_size = 128
image_size = 96
