"""Adverts: classification of images by image and text. Split, texts, predictions, fusion, submission; no training."""
