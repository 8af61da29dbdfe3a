"""texts.jsonl: the text segments of each image, by sample id. Its form: `inference/segments.py`."""
import json
from collections.abc import Iterable

from inference.files import replacing
from inference.segments import Segment, read_segments

__all__ = ["Segment", "read_segments", "read_texts", "write_texts"]


def read_texts(path) -> dict[str, list[str]]:
    """{image id: the texts of its segments, from top to bottom, as they were read}; [] where there is no text. Raises
    UserError for another content."""
    return read_segments(path, lambda segments: [segment.text for segment in segments])  # their boxes are most of them


def write_texts(path, texts: Iterable[tuple[str, list[Segment], str]]) -> int:
    """Write (image id, segments, reason why the image could not be read or "") to `path`. Returns how many have text."""
    with_text = 0
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for name, segments, error in texts:
            row = {"id": name, "segments": [segment._asdict() for segment in segments]} | ({"error": error} if error else {})
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            with_text += bool(segments)
    return with_text
