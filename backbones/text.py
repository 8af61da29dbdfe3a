"""Encoders of text: a table of hashed character n-grams, and the encoders of Hugging Face (transformers).

Both are modules that map the tensors of `inputs` to embeddings `[B,D]`, float. `inputs` takes B samples, each a list of what
`prepare` made of the sample's lines, in any order.
"""
import contextlib
import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from inference.errors import UserError, first_line
from inference.ngrams import Ngrams, pad_rows

from .network import read_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig, PreTrainedModel

POOLINGS = "cls", "mean"
WEIGHTS = "model.safetensors", "pytorch_model.bin"
MAX_TOKENS = 1 << 13
MAX_PARAMETERS = 1 << 30  # of an encoder: more is meant to fill the memory of whoever opens an untrusted run
MAX_LAYERS = 256
MAX_NUMBER = 1 << 21      # in an encoder's config: its vocabulary, a layer's width


class NgramNetwork(nn.Module):
    """rows int64 `[B,L]` and weights float `[B,L]` of `Ngrams.batch` -> embeddings `[B,width]`: sums of rows of a table,
    with weights that are of length 1 for each text. Of no text, where all weights are 0, the embedding is 0.

    A weight is the root of how often the n-gram occurs times its `rarity`, as in TF-IDF. The table begins at 0: an n-gram
    that no training text has says nothing.
    """

    def __init__(self, ngrams: Ngrams, width: int):
        super().__init__()
        self.ngrams, self.width = ngrams, width
        self.table = nn.Parameter(torch.zeros(ngrams.buckets, width))
        self.register_buffer("rarity", torch.ones(ngrams.buckets))

    def forward(self, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        weights = weights.to(self.table.dtype).sqrt() * self.rarity[rows]                          # [B,L]
        weights = weights / weights.square().sum(1, keepdim=True).sqrt().clamp_min(1e-6)
        return (weights[:, None] @ nn.functional.embedding(rows, self.table))[:, 0]                       # [B,1,L] @ [B,L,D]

    def prepare(self, line: str) -> np.ndarray:
        return self.ngrams.rows(line)

    def inputs(self, samples: list[list[np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
        rows, weights = pad_rows([np.concatenate([np.zeros(0, np.int64), *lines]) for lines in samples])
        return torch.from_numpy(rows), torch.from_numpy(weights)

    def random_inputs(self, batch: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Of `batch` texts, one of them empty where there are several: to trace the network, and to compare it."""
        rows = generator.integers(0, self.ngrams.buckets, (batch, 4 + batch))
        weights = generator.random(rows.shape, np.float32) * (generator.random(rows.shape) < 0.8)
        weights[1:2] = 0
        return rows, weights.astype(np.float32)

    def measure_rarity(self, samples: list[list[np.ndarray]]) -> None:
        """Set `rarity` of each bucket, 1 + ln((1 + N) / (1 + n)) where n of the N training texts have it: scikit-learn's
        smooth idf."""
        rows, weights = self.inputs(samples)
        having = torch.bincount(rows[weights > 0], minlength=self.ngrams.buckets)                  # [buckets]
        self.rarity.copy_(1 + ((1 + len(samples)) / (1 + having.double())).log())


class TextEncoder(nn.Module):
    """input_ids and attention_mask int64 `[B,L]` -> embeddings `[B,width]`: the hidden states of `model`, at the first token
    ("cls") or their mean ("mean"). Texts are split by `tokenizer` and cut to `max_tokens`."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "Tokenizer", pooling: str, max_tokens: int):
        super().__init__()
        self.model, self.tokenizer, self.pooling, self.max_tokens = model, tokenizer, pooling, max_tokens
        self.width: int = model.config.hidden_size
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [B,L,D]
        if self.pooling == "cls":
            return hidden[:, 0]
        share = attention_mask[..., None].to(hidden.dtype)
        return (hidden * share).sum(1) / share.sum(1).clamp_min(1)

    def prepare(self, line: str) -> str:
        return line

    def inputs(self, samples: list[list[str]]) -> tuple[torch.Tensor, torch.Tensor]:
        found = [words.ids for words in self.tokenizer.encode_batch(["\n".join(lines) for lines in samples])]
        ids = torch.full((len(found), max([1, *map(len, found)])), self.model.config.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(found):
            ids[i, :len(row)], mask[i, :len(row)] = torch.tensor(row, dtype=torch.int64), 1
        return ids, mask

    def random_inputs(self, batch: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Of `batch` texts of other lengths: to trace the network, and to compare it."""
        longest = min(4 + batch, self.max_tokens)
        ids = generator.integers(0, self.model.get_input_embeddings().num_embeddings, (batch, longest))
        lengths = generator.integers(1, longest + 1, (batch, 1))
        return ids, (np.arange(longest) < lengths).astype(np.int64)

    def describe(self) -> dict:
        """What `restored_encoder` needs beside the weights; JSON values."""
        return {"config": self.model.config.to_dict(), "tokenizer": json.loads(self.tokenizer.to_str())}


def ngram_network(ngrams: Ngrams, width: int) -> NgramNetwork:
    """Raises UserError for n-grams that there are none of, and for a table that is too large."""
    if ngrams.low > ngrams.high:
        raise UserError(f"ngram_low={ngrams.low}: above ngram_high={ngrams.high}")
    if ngrams.buckets * width > MAX_PARAMETERS:
        raise UserError(f"ngram_buckets={ngrams.buckets}, embedding_size={width}: at most {MAX_PARAMETERS} numbers in all")
    return NgramNetwork(ngrams, width)


def hf_encoder(source: str, pretrained: bool, pooling: str, max_tokens: int) -> TextEncoder:
    """The encoder of a folder that holds config.json, tokenizer.json and weights, or of a name on the Hugging Face hub.

    pretrained: false gives random weights of that config. Nothing of the source is executed, neither its own code nor
    pickled objects. Raises UserError where it cannot be had or used.
    """
    folder = Path(source) if Path(source).is_dir() else _fetched(source, pretrained)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"text_network={source}: has no {Path(error.filename).name}; it takes config.json, "
                        "model.safetensors, and tokenizer.json as AutoTokenizer's save_pretrained writes it") from None
    except ValueError as error:
        raise UserError(f"text_network={source}: its config.json cannot be read ({first_line(error)})") from None
    weights = _weights(folder) if pretrained else None
    encoder = _encoder(f"text_network={source}", config, tokenizer, pooling, max_tokens, weights)
    _check_length(encoder, source)
    return encoder


def restored_encoder(info: dict, pooling: str, max_tokens: int) -> TextEncoder:
    """The encoder of a finished run, its weights not loaded yet. info: what `describe` said of it, or anyone."""
    try:
        config, tokenizer = info["config"], json.dumps(info["tokenizer"])
    except (LookupError, TypeError):
        raise UserError("run.json: does not describe the run's encoder; give the whole output folder of the run") from None
    return _encoder("run.json", config, tokenizer, pooling, max_tokens, None)


def _encoder(source, config, tokenizer, pooling, max_tokens, state) -> TextEncoder:
    transformers, tokenizers = _libraries()
    try:
        config = _config(transformers, config)
        with torch.device("meta"):
            outline = transformers.AutoModel.from_config(config)
        size = sum(parameter.numel() for parameter in outline.parameters())
        if size > MAX_PARAMETERS:
            raise ValueError(f"{size:,} parameters are more than {MAX_PARAMETERS:,}")
        if state is None:
            model = transformers.AutoModel.from_config(config)
        else:
            model, report = type(outline).from_pretrained(
                None, config=config, state_dict=state, dtype=torch.get_default_dtype(), output_loading_info=True)
            lacking = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
            if lacking:
                raise ValueError(f"{len(lacking)} tensors of its weights are missing, first {min(lacking)}")
        model.pooler = None  # its weights would get no gradient, which DDP does not forgive
        words = tokenizers.Tokenizer.from_str(tokenizer)
        if words.get_vocab_size() > model.get_input_embeddings().num_embeddings:
            raise ValueError(f"its tokenizer has {words.get_vocab_size():,} words, its table "
                             f"{model.get_input_embeddings().num_embeddings:,} rows")
        return TextEncoder(model.train(), words, pooling, max_tokens)
    except Exception as error:  # each family has its own words for a config that it cannot take
        raise UserError(f"{source}: cannot be used as an encoder ({first_line(error)}); it takes one that transformers' "
                        "AutoModel makes") from None


def _config(transformers, given: dict) -> "PreTrainedConfig":
    """Of the keys that its family has by default. Others may load code: auto_map, the name of an attention kernel."""
    kind = given.get("model_type") if isinstance(given, dict) else None
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise ValueError(f"model_type {kind!r} is not known")
    family = transformers.CONFIG_MAPPING[kind]
    known = family().to_dict().keys() - {"model_type", "dtype", "transformers_version", "_name_or_path"}
    numbers = [value for value in given.values() if isinstance(value, (int, float))]
    if any(not abs(value) <= MAX_NUMBER for value in numbers):
        raise ValueError(f"a number above {MAX_NUMBER:,}")
    config = family(**{key: value for key, value in given.items() if key in known})
    if not 1 <= getattr(config, "num_hidden_layers", 1) <= MAX_LAYERS:
        raise ValueError(f"{config.num_hidden_layers} layers")
    return config


def _weights(folder: Path) -> dict:
    """Of the model in a folder; never unpickles code."""
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise UserError(f"{folder}: has no weights: neither {' nor '.join(WEIGHTS)}; pretrained=false begins at random")
    return read_weights(files[0])


def _check_length(encoder: TextEncoder, source: str) -> None:
    """Raises UserError where the encoder takes no texts as long as `max_tokens`."""
    mask = torch.ones(1, encoder.max_tokens, dtype=torch.int64)
    try:
        with torch.no_grad():
            encoder(mask * ((encoder.model.config.pad_token_id or 0) + 1), mask)  # RoBERTa does not count padding
    except (IndexError, RuntimeError) as error:
        raise UserError(f"text_network={source}, max_tokens={encoder.max_tokens}: do not fit together "
                        f"({first_line(error)}); give fewer tokens") from None


def _fetched(name: str, pretrained: bool) -> Path:
    """The folder of a name on the hub: in its cache, or brought there. Fails at once where the hub cannot be reached."""
    _libraries()
    import huggingface_hub
    if not 1 <= len(name.split("/")) <= 2 or name.startswith((".", "/", "~")):
        raise UserError(f"text_network={name}: no such folder, and no name on the Hugging Face hub")
    wanted = ["config.json", "tokenizer.json"]

    def whole(folder):
        return all((folder / file).is_file() for file in wanted) and (not pretrained or _has_weights(folder))
    with contextlib.suppress(Exception):  # of the hub: not in its cache
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
        if whole(folder):
            return folder
    try:
        urllib.request.urlopen(huggingface_hub.constants.ENDPOINT, timeout=3).close()
    except OSError:
        raise UserError(f"text_network={name}: {huggingface_hub.constants.ENDPOINT} cannot be reached; give a folder with "
                        "config.json, tokenizer.json and model.safetensors") from None
    try:
        for weights in WEIGHTS:  # the second only where the first is not there; neither of them is small
            files = [*wanted, weights] if pretrained else wanted
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=files))
            if whole(folder):
                break
        return folder  # what it lacks is told as of any folder
    except Exception as error:  # of the hub, of HTTP and of the disk
        raise UserError(f"text_network={name}: cannot be fetched from the Hugging Face hub ({first_line(error)})") from None


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHTS)


def _libraries():
    try:
        import tokenizers
        import transformers
    except ImportError:
        raise UserError("text_network: encoders of Hugging Face need the package transformers: pip install transformers; or "
                        "use text_network=ngrams") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers, tokenizers
