"""Files of arrays, .npz, that others may have made. numpy only."""
import os
import warnings
import zipfile

import numpy as np

from .errors import UserError, first_line


def read_arrays(path, names: tuple[str, ...], most: int, kind: str, way_out: str) -> list[np.ndarray]:
    """The arrays `names` of the file `path`. most: bytes of the file and of all that it holds. kind: what the file should
    be, and way_out: what to do where it is not, for the message of the UserError, which is raised whatever is wrong."""
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as packed:
            if os.fstat(file.fileno()).st_size + sum(member.file_size for member in packed.infolist()) > most:
                raise UserError(f"{path}: larger than {most >> 20} MiB; {way_out}")
        with warnings.catch_warnings(), np.load(path, allow_pickle=False) as arrays:
            warnings.simplefilter("ignore")  # numpy's, on headers of other versions
            found = [arrays[name] for name in names]
            if not all(isinstance(array, np.ndarray) for array in found):  # numpy gives bytes without its mark as they are
                raise ValueError("no arrays of numpy")
            for array in found:
                if array.dtype.kind == "U":
                    array.tolist()  # fails where a number in it is no character
            return found
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {way_out}") from None
    except UserError:
        raise
    except Exception as error:  # those of zipfile, its decompressors and numpy share no base class
        raise UserError(f"{path}: not {kind} ({first_line(error)}); {way_out}") from None
