"""Standalone recognition with numpy, OpenCV, ONNX Runtime and the standard library. This folder works on its own.

    from inference import AdvertClassifier, DocClassifier, LineReader
"""
__all__ = ["AdvertClassifier", "DocClassifier", "LineReader"]


def __getattr__(name):  # lazy, so that importing `inference.errors` or `inference.cli` does not load ONNX Runtime
    if name == "AdvertClassifier":
        from .classifier import AdvertClassifier
        return AdvertClassifier
    if name == "DocClassifier":
        from .classify import DocClassifier
        return DocClassifier
    if name == "LineReader":
        from .reader import LineReader
        return LineReader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
