"""The whole network, and where its weights come from."""
import os
import urllib.request
from pathlib import Path

import timm
import torch
from torch import nn

from inference.errors import UserError, first_line

from . import plain  # noqa: F401  timm learns its names
from .head import Head


class EmbeddingNetwork(nn.Module):
    """Images float `[B,3,S,S]` in [0,1], RGB -> embeddings `[B,e]`, not normalized to length 1.

    The mean and deviation the features expect are part of the network, so they travel with every export.
    """

    def __init__(self, features: nn.Module, head: Head, mean, std):
        super().__init__()
        self.features, self.head = features, head
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = (image - self.mean) / self.std
        return self.head(self.features(image)[-1], image)


def get_model(cfg, pretrained=None) -> EmbeddingNetwork:
    """The network of a config: keys `network, head, norm, layout, embedding_size, image_size, pretrained`.

    `pretrained` overrides the config's: True takes timm's weights from the hub, a path takes those of a file (a
    `model.pt` of this project, or any checkpoint timm can read for this network), False takes none.
    """
    pretrained = cfg.pretrained if pretrained is None else pretrained
    features, ours = timm_features(cfg.network, pretrained, "head.embed.", out_indices=(-1,))
    try:
        with torch.no_grad():
            shape = features.eval()(torch.zeros(1, 3, cfg.image_size, cfg.image_size))[-1].shape
        head = Head(*shape[1:], cfg.embedding_size, cfg.head, cfg.norm, cfg.get("layout", 0))
    except Exception as error:  # each family has its own words for a size it cannot take
        raise UserError(f"network={cfg.network}, image_size={cfg.image_size}: do not fit together ({first_line(error)}); "
                        "choose another size, or a network with feature maps [B,C,h,w]") from None
    model = EmbeddingNetwork(features, head, *mean_and_std(cfg.network)).train()
    if ours:
        load_weights(model, ours, pretrained)
    return model


def timm_features(network: str, pretrained: bool | str, own: str, **options) -> tuple[nn.Module, dict | None]:
    """(timm's `network` with features_only and further `options`, None), its weights as the key `pretrained` says; or
    (one of random weights, a state dict to load when the whole is built), where the file `pretrained` is one that this
    project wrote: it has a key that begins with `own`."""
    state = read_weights(Path(pretrained)) if isinstance(pretrained, str) else None
    if state is not None and any(key.startswith(own) for key in state):
        return _features(network, False, options), state
    if state is not None:
        _check_theirs(state, network, pretrained)
    return _features(network, state or pretrained, options), None


def mean_and_std(network: str) -> tuple[tuple, tuple]:
    """Of RGB in [0,1], as timm's weights of `network` expect it."""
    defaults = timm.get_pretrained_cfg(network)
    return (defaults.mean, defaults.std) if defaults else (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)


def load_weights(model: nn.Module, state: dict, source) -> None:
    """Load a state dict of this project into `model`; raises UserError when it is another network's."""
    ours = model.state_dict()
    wrong = [k for k in ours if k not in state or state[k].shape != ours[k].shape] + [k for k in state if k not in ours]
    if wrong:
        raise UserError(f"{source}: weights of another network or head ({len(wrong)} tensors differ, first {wrong[0]}); "
                        "give the config they were trained with")
    try:
        model.load_state_dict(state)
    except Exception as error:  # tensors that are sparse, or on no device
        raise UserError(f"{source}: cannot be read as weights ({first_line(error)})") from None


def read_weights(file: Path) -> dict:
    """A state dict from a .pt or .safetensors file; never unpickles code."""
    if not Path(file).is_file():  # a pipe, say, would be waited for
        raise UserError(f"{file}: no such file")
    try:
        if Path(file).suffix == ".safetensors":
            from safetensors.torch import load_file
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(value, torch.Tensor)
                                                  for key, value in state.items()):
            raise ValueError("not a state dict: names with their tensors")
        return state
    except Exception as error:  # safetensors, zip and unpickling errors share no base
        raise UserError(f"{file}: cannot be read as weights ({first_line(error)})") from None


def _check_theirs(state: dict, network: str, file: str) -> None:
    """Raises UserError unless `state` is timm's of `network`: timm fills what it finds and leaves the rest at random
    without a word."""
    theirs = _create(network).state_dict()
    classifier = getattr(timm.get_pretrained_cfg(network), "classifier", None) or ()
    skipped = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    missing = [key for key, value in theirs.items() if not key.startswith(skipped)
               and (key not in state or state[key].shape != value.shape)]
    if missing:
        raise UserError(f"pretrained={file}: not weights of {network} ({len(missing)} of {len(theirs)} tensors are missing "
                        f"or of another shape, first {missing[0]})")


def _create(network: str, **options) -> nn.Module:
    if ":" in network:
        raise UserError(f"network={network}: takes a name that timm.list_models() has")
    try:
        return timm.create_model(network, **options)
    except Exception as error:  # unknown name or tag, no features_only, a failed download
        raise UserError(f"network={network}: timm cannot make it ({first_line(error)}); "
                        "timm.list_models() names what it has") from None


def _features(network: str, pretrained, options: dict) -> nn.Module:
    options = dict(features_only=True, **options)
    if isinstance(pretrained, dict):
        options.update(pretrained=True, pretrained_cfg_overlay=dict(state_dict=pretrained))
    elif pretrained:
        _check_hub(network)
        options.update(pretrained=True)
    return _create(network, **options)


def _check_hub(network: str) -> None:
    """Fail at once where the hub cannot be reached; timm alone would try again for twenty seconds and more."""
    from huggingface_hub import constants, try_to_load_from_cache
    defaults = timm.get_pretrained_cfg(network)
    if defaults is None or not defaults.has_weights:
        raise UserError(f"pretrained=true: timm has no weights for {network}; use pretrained=false or pretrained=FILE")
    if defaults.hf_hub_id and any(isinstance(try_to_load_from_cache(defaults.hf_hub_id, name), str)
                                  for name in ("model.safetensors", "pytorch_model.bin")):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # already here: do not ask the hub about it
        constants.HF_HUB_OFFLINE = True
        return
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=3).close()
    except OSError:
        raise UserError(f"pretrained=true: {constants.ENDPOINT} cannot be reached; use pretrained=false, "
                        "or pretrained=FILE with weights of this network") from None
