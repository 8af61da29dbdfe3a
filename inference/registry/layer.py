"""The file layer below SQLite: what is read from a write-ahead log is verified, and other threads run while a disk writes.

SQLite looks at the checksums of a log in one case alone: when it recovers the log after a crash. There it takes the first
bad one for the end, as after a power cut: one flipped bit, and all commits behind it are gone without a word. What a running
process reads from the log it believes, and a checkpoint copies it into the database with a page checksum that fits. Here
both are noticed.
"""
import contextlib
import os
import threading
import time
import zlib

import apsw

from .wal import DAMAGED, FRAME, HEAD, MAGIC, SUMS, checksum, wal_damage, words_of


class LogDamaged(apsw.IOError):
    """Something in a log has not the checksum that it was written with."""
    extendedresult = apsw.SQLITE_IOERR_DATA


class VerifiedLogs(apsw.VFS):
    """The file layer `base` under the name `name`, where each page of a log is verified each time that it is read, by
    readers, writers and checkpoints alike: 7 us a page.

    Checksums of rows would not do: a flipped bit in a page of an index, or in a page's list of rows, makes rows vanish. Nor
    would it do to verify what a log has grown by: SQLite reads pages from the file again after each commit.

    apsw holds Python's lock while it calls `base`. What takes long is done here, so that other threads run meanwhile.
    """

    def __init__(self, name: str, base: str):
        super().__init__(name, base)
        self._base = base

    def xOpen(self, name, flags):
        kind = (_Log if flags[0] & apsw.SQLITE_OPEN_WAL else _Database if flags[0] & apsw.SQLITE_OPEN_MAIN_DB else
                apsw.VFSFile)
        return kind(self._base, name, flags)

    def xSleep(self, microseconds):
        """While another process writes."""
        time.sleep(microseconds / 1e6)
        return microseconds


class _Database(apsw.VFSFile):
    """All connections of a process share a descriptor, to see to it that a database is on the disk. The last one closes it:
    to close any descriptor of a file ends all locks that the process has on it."""
    _shared, _sharing = {}, threading.Lock()  # {(device, inode): [descriptor, number of connections]}

    def __init__(self, base, name, flags):
        super().__init__(base, name, flags)
        try:
            status = os.stat(name.filename())
            self._key = status.st_dev, status.st_ino
            with self._sharing:
                if self._key not in self._shared:
                    self._shared[self._key] = [os.open(name.filename(), os.O_RDONLY), 0]
                self._shared[self._key][1] += 1
        except OSError as error:
            raise apsw.CantOpenError(str(error)) from None

    def xSync(self, flags):
        with contextlib.suppress(OSError):
            os.fsync(self._shared[self._key][0])
        super().xSync(flags)  # has little left to do, and says what is wrong

    def xClose(self):
        try:
            super().xClose()
        finally:
            with self._sharing:
                self._shared[self._key][1] -= 1
                if not self._shared[self._key][1]:
                    os.close(self._shared.pop(self._key)[0])


class _Log(apsw.VFSFile):
    """SQLite reads from a log: its head, when it recovers it; a page; the checksum of a frame, 8 bytes, and then the frames
    behind it as a whole, when it gives a new checksum to pages that one large transaction has written twice."""

    def __init__(self, base, name, flags):
        super().__init__(base, name, flags)
        self._path = os.fspath(name)
        self._sealed = None  # place of the page that belongs to the checksum which was written last
        self._unsealed = {}  # {place: CRC} of pages without one, until their transaction ends
        self._sums = None  # those of the frame before, while frames get new ones

    def xSync(self, flags):
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, os.O_RDONLY)  # there is no lock on a log that closing it would end
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        super().xSync(flags)

    def xWrite(self, data, offset):
        if len(data) == FRAME:
            self._sealed = offset + FRAME if any(data[16:]) else None
            self._unsealed.pop(offset + FRAME, None)
        elif _is_page(len(data)):
            if offset != self._sealed:
                self._unsealed[offset] = zlib.crc32(data)
            self._sealed = None  # it may be written again
        super().xWrite(data, offset)

    def xRead(self, amount, offset):
        data = super().xRead(amount, offset)
        if amount == HEAD:
            self._sums = None
            if damage := wal_damage(self._path):
                raise LogDamaged(damage)
        elif amount == SUMS:
            self._sums = words_of(data, ">u4")
        elif len(data) < amount:
            pass  # the end of the file, which SQLite notices
        elif _is_page(amount):
            before = offset - FRAME - SUMS - (amount if offset > HEAD + FRAME else 0)
            if not self._is_whole(super().xRead(FRAME, offset - FRAME), data, offset,
                                  words_of(super().xRead(SUMS, before), ">u4")):
                # Without the checksum of its head nobody recovers the log: in its last commit damage would look like a power
                # cut, and a part of that commit may be in the database since a checkpoint came upon the damage.
                with contextlib.suppress(apsw.Error):
                    super().xWrite(bytes(SUMS), HEAD - SUMS)
                raise LogDamaged(DAMAGED)
        elif self._sums:
            if not self._is_whole(data[:FRAME], data[FRAME:], offset + FRAME, self._sums):
                raise LogDamaged(DAMAGED)  # by this the transaction fails, and nothing of it counts
            self._sums = words_of(data[16:FRAME], ">u4")
        return data

    def _is_whole(self, frame, page, offset, before):
        order = "<u4" if super().xRead(4, 0)[3] == MAGIC[0] & 255 else ">u4"
        return (checksum(frame[:8] + page, order, before) == words_of(frame[16:], ">u4")
                or self._unsealed.get(offset) == zlib.crc32(page))


def _is_page(size):
    return size >= 512 and size & size - 1 == 0
