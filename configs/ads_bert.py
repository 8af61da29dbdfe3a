"""As configs/ads_roberta, another encoder: Chinese BERT-wwm, without averaged weights, as that system had it."""
from configs.ads_roberta import *  # noqa: F403

text_network = "hfl/chinese-bert-wwm"
swa = 0.0
