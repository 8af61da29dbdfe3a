"""As configs/ads_roberta, another encoder: Chinese BERT-wwm-ext."""
from configs.ads_roberta import *  # noqa: F403

text_network = "hfl/chinese-bert-wwm-ext"
