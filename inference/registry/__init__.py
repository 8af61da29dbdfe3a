"""The durable registry: `Registry.open(STORE)`. Needs apsw beside numpy, OpenCV and ONNX Runtime."""
__all__ = ["Registry", "Store", "is_store"]


def __getattr__(name):  # lazy, so that a client, which needs `registry.errors` alone, loads nothing else
    if name in __all__:
        from . import core
        return getattr(core, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
