"""Zero-shot evaluation: do two images show the same document type?

    python -m eval --model M.onnx|OUTPUT_DIR --data DIR [--open-set] [--report DIR] [--json]
    python -m eval --model M.onnx --calibrate DIR
"""
from eval.evaluation import Evaluation, evaluate_folder

__all__ = ["Evaluation", "evaluate_folder"]
