"""Data for reading text lines: synthetic lines, renders and crops of characters, COCO files, alignment, labels.

    python -m ocr --help
"""
