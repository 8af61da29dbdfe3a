"""Adverts: classification of images by picture and text. Split, texts, predictions, fusion, submission; no training."""
