"""The durable registry: `Registry.open(STORE)`. Needs apsw beside numpy, OpenCV and ONNX Runtime."""
from .core import Registry
from .store import Store, is_store

__all__ = ["Registry", "Store", "is_store"]
