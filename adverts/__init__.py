"""Adverts: classification of images by picture and text. Splits, texts, predictions, fusion, submission; no training loop."""
