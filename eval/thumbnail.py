"""The baseline that every model must beat: 16x16 colors minus the image's mean, compared by cosine. No training."""
import numpy as np

from inference.image import resize


def thumbnail(image):
    """uint8 BGR [H, W, 3] -> float32 [768]. Each of the 16x16 cells is the mean of its area in the original."""
    small = resize(image, 16).astype(np.float32)
    return (small - small.mean()).reshape(-1)


def turned(vector, quarters):
    """The thumbnail of the same image turned by so many quarters, counterclockwise as `np.rot90` does."""
    return np.rot90(vector.reshape(16, 16, 3), quarters).reshape(-1)
