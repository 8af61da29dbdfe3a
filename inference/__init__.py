"""Standalone recognition: numpy, OpenCV, ONNX Runtime and the standard library. Can be copied out and used alone.

    from inference import DocClassifier
"""
__all__ = ["DocClassifier"]


def __getattr__(name):  # on demand: `inference.errors` and `inference.cli` must not wait for ONNX Runtime
    if name == "DocClassifier":
        from .classify import DocClassifier
        return DocClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
