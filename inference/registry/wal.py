"""A damaged write-ahead log of SQLite: noticed, and read all the same.

SQLite takes the first bad checksum of a log for its end, as after a power cut: one flipped bit, and all commits behind it
are gone without a word. https://sqlite.org/fileformat2.html#the_write_ahead_log
"""
import functools
import os
import struct

import numpy as np

MAGIC = 0x377F0682, 0x377F0683  # words little endian, big endian
HEAD, FRAME = 32, 24  # bytes before all frames, and before the page of each


def wal_damage(path) -> str | None:
    """Whether a log holds commits that SQLite will not read, since something before them is damaged. None: it holds none, or
    there is no log. To be asked before the database is opened: the first to open it ends the log there. Others may be
    writing. Reads 300 MB/s."""
    found = _unread(path)
    if found is None or _unread(path) != found:  # the second time: a frame may have been written just then
        return None
    return "its write-ahead log is damaged, and the commits that follow there cannot be read"


def _unread(path):
    """(place of the first damaged frame, salts) where commits follow it; None where not."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            if len(head) < HEAD or not any(head):  # nothing was ever committed to it
                return None
            page, salts, order = _head(head)
            sums = _sum(head[:24], order)
            if page is None or _words(head[24:], ">u4") != sums:
                return 0, b""
            damaged, commit = None, False  # whether there was a commit from the damage on
            while len(frame := file.read(FRAME + page)) == FRAME + page:
                ours = frame[8:16] == salts
                if damaged is None:
                    sums = _sum(frame[:8] + frame[FRAME:], order, sums)
                    if ours and _words(frame[16:24], ">u4") == sums:
                        continue
                    damaged = file.tell() - FRAME - page
                elif ours and commit:
                    return damaged, salts
                # What was rolled back, or written before the log began anew, may follow: it has no commit, which is a frame
                # with the size of the database, or has other salts. A commit with frames behind it was on the disk before
                # those were written; the last one of all may be what a power cut left unfinished.
                commit |= ours and any(frame[4:8])
    except FileNotFoundError:
        pass
    return None


def reseal(path) -> None:
    """Give the frames of a damaged log the checksums that they lack, in place, so that SQLite reads them all. For a copy
    that rows are saved from: what a damaged page holds is wrong, and its own checksum (https://sqlite.org/cksumvfs.html)
    says so. Ends at a frame of which nobody can tell to which page it belongs."""
    with open(path, "r+b") as file:
        head = file.read(HEAD)
        if len(head) < HEAD:
            return
        page, _, order = _head(head)
        page = page or 4096
        # Of both the salts of the first two frames, and those of the head, two are the same.
        file.seek(HEAD)
        first, second = (file.read(FRAME + page)[8:16] for _ in range(2))
        salts = first if first == second else head[16:24]
        head = struct.pack(">4I", MAGIC[order == ">u4"], 3007000, page, int.from_bytes(head[12:16], "big")) + salts
        true = sums = _sum(head, order)  # as it was when the log was written, and as it is now
        file.seek(0)
        file.write(head + np.array(sums, ">u4").tobytes())
        for number in range((os.fstat(file.fileno()).st_size - HEAD) // (FRAME + page)):
            file.seek(HEAD + number * (FRAME + page))
            frame = file.read(FRAME + page)
            if _bits(frame[8:16], salts) > 1:
                return  # from before the log began anew
            content, stored = frame[:8] + frame[FRAME:], _words(frame[16:24], ">u4")
            true = _sum(content, order, true)
            if true != stored:
                if _sum(frame[FRAME:-8], "<u4") != _words(frame[-8:], "<u4"):
                    true = stored  # it is the page that is damaged
                elif _bits(frame[16:24], np.array(true, ">u4").tobytes()) > 1:
                    return  # it is neither the page nor the checksum: so it is the number of the page
            sums = _sum(content, order, sums)
            file.seek(HEAD + number * (FRAME + page))
            file.write(frame[:8] + salts + np.array(sums, ">u4").tobytes() + frame[FRAME:])


def page_is_whole(path) -> bool:
    """Whether the first page of a database, which says what it is, has its checksum."""
    with open(path, "rb") as file:
        page = file.read(65536)
    size = int.from_bytes(page[16:18], "big")
    size = 65536 if size == 1 else size
    page = page[:size]
    return (len(page) == size >= 512 and size % 8 == 0 and _sum(page[:-8], "<u4")
            == _words(page[-8:], "<u4"))


def _head(head):
    """(size of a page or None, salts, byte order)"""
    magic, _, page = struct.unpack_from(">3I", head)
    fine = magic in MAGIC and page & page - 1 == 0 and 512 <= page <= 65536
    return page if fine else None, head[16:24], ">u4" if magic == MAGIC[1] else "<u4"


def _sum(content, order, start=(0, 0)):
    """SQLite's checksum of an even number of words: for each pair s0 += x0 + s1, s1 += x1 + s0. That is linear: what each
    word adds to the end is a Fibonacci number, modulo 2^32, of how far away the end is."""
    words = np.frombuffer(content, order)
    n, numbers = len(words), _fibonacci(len(words) + 2)
    s0, s1, before, here, after = *start, *numbers[n - 1:n + 2].tolist()
    return ((int((numbers[n - 1::-1] * words).sum(dtype=np.uint32)) + before * s0 + here * s1) & 0xFFFFFFFF,
            (int((numbers[n:0:-1] * words).sum(dtype=np.uint32)) + here * s0 + after * s1) & 0xFFFFFFFF)


@functools.cache
def _fibonacci(count):
    """F(0), ..., F(count - 1) modulo 2^32, uint32."""
    values = [0, 1]
    while len(values) < count:
        values.append((values[-1] + values[-2]) & 0xFFFFFFFF)
    return np.array(values, np.uint32)


def _words(content, order):
    return tuple(np.frombuffer(content, order).tolist())


def _bits(one, other):
    """In how many bits two strings of bytes differ."""
    return bin(int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).count("1")
