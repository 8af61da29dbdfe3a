"""The write-ahead log of SQLite: a damaged one is noticed, and read all the same.
https://sqlite.org/fileformat2.html#the_write_ahead_log
"""
import functools
import itertools
import os
import struct

import numpy as np

MAGIC = 0x377F0682, 0x377F0683  # words little endian, big endian
HEAD, FRAME = 32, 24  # bytes before all frames, and before the page of each
SUMS = 8  # bytes of a checksum: the last ones of the head, and of what is before each page
DAMAGED = "its write-ahead log is damaged"


def wal_damage(path) -> str | None:
    """Whether a log holds commits that SQLite will not read, since something is damaged. None: it holds none, or there is no
    log. Others may be writing. Reads 500 MB/s."""
    found = _unread(path)
    if found is None or _unread(path) != found:  # the second time: a frame may have been written just then
        return None
    return f"{DAMAGED}, and commits in it cannot be read"


def _unread(path):
    """(place of the first damaged frame, salts) where commits are lost by it; None where not.

    What was rolled back, or written before the log began anew, may follow: it has no commit, which is a frame with the size
    of the database, or has other salts. A commit with frames behind it was on the disk before those were written. The last
    one of all may be what a power cut left unfinished, unless a single bit is all that is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            if len(head) < HEAD or not any(head):  # nothing was ever committed to it
                return None
            page, salts, order = _head(head)
            sums = checksum(head[:24], order)
            if page is None or words_of(head[24:], ">u4") != sums:
                return 0, b""
            damaged, flipped, commit = None, False, False  # whether there was a commit from the damage on
            while len(frame := file.read(FRAME + page)) == FRAME + page:
                ours = frame[8:16] == salts
                if damaged is None:
                    content, stored, before = frame[:8] + frame[FRAME:], words_of(frame[16:FRAME], ">u4"), sums
                    sums = checksum(content, order, before)
                    if ours and stored == sums:
                        continue
                    damaged = file.tell() - FRAME - page
                    flips = _flips(content, order, before, stored)
                    flipped = len(flips) > 0 or _bits(frame[8:FRAME], salts + struct.pack(">2I", *sums)) == 1
                    ours |= flipped
                    commit = 1 in flips[:, 1]  # what is wrong may be that it is none
                elif ours and commit:
                    return damaged, salts
                commit |= ours and any(frame[4:8])
                if flipped and commit:
                    return damaged, salts
    except FileNotFoundError:
        pass
    return None


def replay(log, database) -> tuple[int, int]:
    """Write what a damaged log holds, up to its last commit, into its database, as a checkpoint would. For copies of both,
    from which rows are saved. One flipped bit is flipped back where the checksum tells which one it was. A page that stays
    damaged gets a wrong checksum of its own (https://sqlite.org/cksumvfs.html), so that whoever reads it knows. Answers
    (flipped bits, damaged pages)."""
    mended, damaged, waiting = 0, set(), {}
    with open(log, "rb") as file, open(database, "r+b") as out:
        head = file.read(HEAD)
        if len(head) < HEAD:
            return 0, 0
        # What the first checksum goes on from: as it is written and, should that be what is damaged, as it must have been.
        before = [words_of(head[24:], ">u4")]
        for order in ("<u4", ">u4"):
            before.append(checksum(head[:24], order))
            head = (_flipped_back(head[:24], order, [(0, 0)], before[0]) or head[:24]) + head[24:]
        page, salts, order = _head(head)
        page = page or 4096
        most = (os.fstat(file.fileno()).st_size + os.fstat(out.fileno()).st_size) // page
        # Of both the salts of the first two frames, and those of the head, two are the same.
        first, second = (file.read(FRAME + page)[8:16] for _ in range(2))
        salts = first if first == second else salts
        file.seek(HEAD)
        for (content, stored), (following, its) in itertools.pairwise(
                itertools.chain(_frames(file, page, salts), [(b"", None)])):
            sums = [checksum(content, order, start) for start in before]
            if stored in sums:
                whole, before = content, [stored]
            elif its in [checksum(following, order, start) for start in sums if following]:
                whole, before = content, sums  # it is the checksum that is damaged
            else:
                whole, before = _flipped_back(content, order, before, stored), [stored]
                mended += whole is not None
            number, commit = struct.unpack_from(">2I", whole or content)
            waiting[number] = (whole or content)[8:-8], whole is not None
            if commit:
                for number, (rows, fine) in waiting.items():
                    (damaged.discard if fine else damaged.add)(number)
                    if 0 < number <= most:
                        _write(out, number, rows, fine)
                waiting.clear()
    return mended, len(damaged)


def _write(database, number, rows, fine):
    """The page `number`, all but its own checksum, and that checksum: a wrong one where the page is not `fine`."""
    s0, s1 = checksum(rows, "<u4")
    database.seek((number - 1) * (len(rows) + 8))
    database.write(rows + struct.pack("<2I", s0 ^ (not fine), s1))


def _frames(file, page, salts):
    """Yield what is summed up of each frame, and its checksum; until what is from before the log began anew."""
    while len(frame := file.read(FRAME + page)) == FRAME + page and _bits(frame[8:16], salts) <= 1:
        yield frame[:8] + frame[FRAME:], words_of(frame[16:FRAME], ">u4")


def _flipped_back(content, order, starts, stored):
    """`content` with the one bit flipped that gives it the checksum `stored`, going on from one of `starts`; None where no
    bit does, or several do."""
    for start in starts:
        if len(flips := _flips(content, order, start, stored)) == 1:
            (bit, place), words = flips[0], np.frombuffer(content, order).copy()
            words[place] ^= np.uint32(1) << np.uint32(bit)
            return words.tobytes()
    return None


def _flips(content, order, start, stored):
    """[(bit, word)] of all single bits of `content` that, flipped, give it the checksum `stored`, going on from `start`.
    It is one alone for 3 of 4 bits of a page: modulo small powers of two Fibonacci numbers soon repeat, so that the upper
    bits of many words add the same."""
    words, bits = np.frombuffer(content, order).astype(np.uint32), np.uint32(1) << np.arange(32, dtype=np.uint32)[:, None]
    change = np.where(words & bits, -bits, bits)  # [32, words]: what flipping a bit adds to its word
    s0, s1 = (np.uint32(there - here & 0xFFFFFFFF) for there, here in zip(stored, checksum(content, order, start)))
    weights = _weights(len(words))
    return np.argwhere((change * weights[0] == s0) & (change * weights[1] == s1))


def page_is_whole(path) -> bool:
    """Whether the first page of a database, which says what it is, has its checksum."""
    with open(path, "rb") as file:
        page = file.read(65536)
    size = int.from_bytes(page[16:18], "big")
    size = 65536 if size == 1 else size
    page = page[:size]
    return (len(page) == size >= 512 and size % 8 == 0 and checksum(page[:-8], "<u4")
            == words_of(page[-8:], "<u4"))


def _head(head):
    """(size of a page or None, salts, byte order)"""
    magic, _, page = struct.unpack_from(">3I", head)
    fine = magic in MAGIC and page & page - 1 == 0 and 512 <= page <= 65536
    return page if fine else None, head[16:24], ">u4" if magic == MAGIC[1] else "<u4"


def checksum(content, order, start=(0, 0)):
    """SQLite's checksum of an even number of words: for each pair s0 += x0 + s1, s1 += x1 + s0. That is linear: what each
    word adds to the end is a Fibonacci number, modulo 2^32, of how far away the end is."""
    words = np.frombuffer(content, order)
    weights = _weights(len(words))
    (sum0, sum1), (one, two) = (weights @ words).tolist(), weights[:, 0].tolist()
    s0, s1 = start
    return (sum0 + one * s0 + two * s1) & 0xFFFFFFFF, (sum1 + two * s0 + (one + two) * s1) & 0xFFFFFFFF


@functools.cache
def _weights(count):
    """By what each of `count` words is multiplied for the two sums, uint32 `[2, count]`; what they add wraps around."""
    numbers = [0, 1]
    while len(numbers) <= count:
        numbers.append((numbers[-1] + numbers[-2]) & 0xFFFFFFFF)
    return np.array([numbers[count - 1::-1], numbers[count:0:-1]], np.uint32)


def words_of(content, order):
    return tuple(np.frombuffer(content, order).tolist())


def _bits(one, other):
    """In how many bits two strings of bytes differ."""
    return bin(int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).count("1")
