"""Standalone recognition with numpy, OpenCV, ONNX Runtime and the standard library. This folder works on its own.

    from inference import AdvertClassifier, Client, DocClassifier, LineReader, Registry
"""
import importlib
import os

# From 1.29 on, ONNX Runtime reports to Microsoft: hashes of the model, sizes, a number for this machine that it keeps in
# ~/.cache. The variable is read once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {"AdvertClassifier": ".classifier", "Client": ".client", "DocClassifier": ".classify", "LineReader": ".reader",
          "Registry": ".registry.core"}
__all__ = list(_HOMES)


def __getattr__(name):  # lazy, so that importing `inference.errors` or `inference.cli` does not load ONNX Runtime
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
