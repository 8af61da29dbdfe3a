"""Standalone inference: numpy, OpenCV, ONNX Runtime and the standard library, nothing else.

`search_cuda.py` and `search_triton.py`, for millions of references on a GPU, need torch and are imported only on demand.
"""
