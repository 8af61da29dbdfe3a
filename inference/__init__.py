"""Standalone inference: numpy, OpenCV, ONNX Runtime and the standard library, nothing else."""
